// What every page has: asking the server, the count of jobs, moving pictures that may be stilled.
const lost = document.querySelector("#lost");
const studio = {
  async ask(method, path, body) {
    const options = { method, headers: {} };
    if (body instanceof Blob) options.body = body;
    else if (body !== undefined) {
      options.body = JSON.stringify(body);
      options.headers["content-type"] = "application/json";
    }
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw [{ where: "the studio", text: "The studio does not answer. Start it again: nothing is lost." }];
    }
    const told = answer.status !== 204 && answer.headers.get("content-type")?.includes("json");
    const content = told ? await answer.json() : null;
    if (!answer.ok) throw content?.problems ?? [{ where: "the studio", text: `It answered ${answer.status}.` }];
    return content;
  },
  list(element, problems) {
    element.replaceChildren(...problems.map((problem) => {
      const item = document.createElement("li");
      item.textContent = problem.text ?? problem;
      return item;
    }));
    element.hidden = !problems.length;
  },
  seconds(left) {
    if (left === null) return "";
    if (left < 90) return `${Math.round(left)} s left in this part`;
    return left < 5400 ? `${Math.round(left / 60)} min left in this part` : `${(left / 3600).toFixed(1)} h left in this part`;
  },
  // A stream of events, open while its page is seen: all tabs together have six connections to a server.
  listen(path, take) {
    let source = null;
    const close = () => {
      source?.close();
      source = null;
    };
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(path);
      source.addEventListener("message", (event) => take(JSON.parse(event.data)));
      source.addEventListener("end", () => source.close());
      source.addEventListener("open", () => { lost.hidden = true; });
      source.addEventListener("error", () => {
        lost.textContent = source.readyState === EventSource.CLOSED
          ? "The studio was started anew: open the address that it printed. Nothing is lost."
          : "The studio does not answer. Its jobs run on; start it again to see them.";
        lost.hidden = false;
      });
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
    addEventListener("pagehide", close);
    addEventListener("pageshow", open);
    open();
    return { open, close };
  },
};

const busy = document.querySelector("#busy");
const running = document.querySelector("#running");
let before = "";
const showJobs = (list) => {
  busy.textContent = list.length;
  busy.hidden = !list.length;
  busy.setAttribute("aria-label", `${list.length} waiting or running`);
  if (!running) return;
  const ids = list.map((job) => job.id).join();
  // One has ended: there is something new to see.
  if (before && before.split(",").some((id) => !ids.includes(id))) location.reload();
  before = ids;
  running.replaceChildren(...list.map((job) => {
    const link = document.createElement("a");
    const bar = document.createElement("progress");
    const told = document.createElement("span");
    link.href = `/jobs/${job.id}`;
    link.className = "running-job";
    link.dataset.job = job.id;
    told.textContent = `${job.title}: ${job.status}${job.stage ? `, ${job.stage}` : ""}`;
    bar.max = job.of || 1;
    bar.setAttribute("aria-label", told.textContent);
    if (job.of) bar.value = job.step;
    link.append(told, bar);
    return link;
  }));
};
// The page of a job has a stream of its own, and one is enough: windows side by side share the six connections, too.
if (!document.querySelector("#job")) studio.listen("/api/events", showJobs);

if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
  for (const picture of document.querySelectorAll(".card img[data-still]")) picture.src = picture.dataset.still;
}
