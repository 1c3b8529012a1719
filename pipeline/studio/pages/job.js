// A job as it goes: stage, step, time left, loss, the first frames; cancel and retry.
const place = document.querySelector("#job");
const part = (id) => document.getElementById(id);
const path = `/api/jobs/${place.dataset.job}`;

const show = (job) => {
  const live = job.status === "running" || job.status === "stopping";
  const status = part("status");
  status.textContent = job.status;
  status.dataset.status = job.status;
  status.className = `status ${job.status}`;
  part("stages").replaceChildren(...job.stages.map((name, index) => {
    const item = document.createElement("li");
    item.textContent = name;
    if (live && index === job.stages.length - 1) item.setAttribute("aria-current", "step");
    return item;
  }));
  const bar = part("bar");
  bar.hidden = !live;
  if (job.of) {
    bar.max = job.of;
    bar.value = job.step;
  } else bar.removeAttribute("value");
  part("now").textContent = {
    queued: "It waits for the jobs before it.",
    interrupted: "It was interrupted, and goes on in a moment.",
    cancelled: "It was cancelled. What was trained is kept: trying again goes on from there.",
    stopping: "It is stopping. A training saves where it is first.",
    done: "Done.",
    failed: "It failed.",
  }[job.status] ?? (job.of ? `${job.label || job.stage}: ${job.step} of ${job.of}` : job.stage ? `${job.stage} is starting` : "Starting");
  part("left").textContent = live && job.of ? studio.seconds(job.left) : "";
  const losses = job.losses;
  part("loss").hidden = !losses.length;
  document.querySelector("#loss svg").hidden = losses.length < 2;
  if (losses.length === 1) part("loss-told").textContent = `Training loss: ${losses[0].toPrecision(3)}`;
  if (losses.length > 1) {
    const low = Math.min(...losses), high = Math.max(...losses);
    const points = losses.map((loss, index) => `${(300 * index) / (losses.length - 1)},${76 - (72 * (loss - low)) / (high - low || 1)}`);
    document.querySelector("#loss polyline").setAttribute("points", points.join(" "));
    part("loss-told").textContent = `Training loss: ${losses[0].toPrecision(3)} at first, ${losses.at(-1).toPrecision(3)} now`;
  }
  studio.list(part("problems"), job.problems);
  part("cancel").hidden = !["queued", "interrupted", "running"].includes(job.status);
  part("retry").hidden = !["failed", "cancelled"].includes(job.status);
  part("result").hidden = job.status !== "done";
  const shown = [...part("previews").children].map((picture) => picture.dataset.name);
  part("first").hidden = !job.previews.length || job.status === "done";
  if (shown.join() !== job.previews.join()) {
    part("previews").replaceChildren(...job.previews.map((name, index) => {
      const picture = new Image();
      picture.src = `/media/previews/${job.key}/${name}?v=${job.started}`;
      picture.alt = `Coarse frame ${index + 1}`;
      picture.dataset.name = name;
      return picture;
    }));
  }
};

const stream = studio.listen(`${path}/events`, show);
const act = (what) => async () => {
  try {
    show(await studio.ask("POST", `${path}/${what}`));
    stream.close();
    stream.open();
  } catch (problems) {
    studio.list(part("problems"), problems);
  }
};
part("cancel").addEventListener("click", act("cancel"));
part("retry").addEventListener("click", act("retry"));
const readLog = async () => {
  const details = part("log-details");
  if (!details.open) return;
  const answer = await fetch(`${path}/log`);
  const log = part("log");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 40;
  log.textContent = await answer.text();
  if (atEnd) log.scrollTop = log.scrollHeight;
};
part("log-details").addEventListener("toggle", readLog);
setInterval(readLog, 2000);
