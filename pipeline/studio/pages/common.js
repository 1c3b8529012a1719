// What every page has: asking the server, the count of jobs, moving pictures that may be stilled.
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
};

const busy = document.querySelector("#busy");
const running = document.querySelector("#running");
const jobs = new EventSource("/api/events");
let before = "";
jobs.addEventListener("message", (event) => {
  const list = JSON.parse(event.data);
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
});
addEventListener("pagehide", () => jobs.close());

if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
  for (const picture of document.querySelectorAll(".card img[data-still]")) picture.src = picture.dataset.still;
}
