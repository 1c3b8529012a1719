// A new morph: pictures dropped, put in order, captioned, cropped; saved as one writes, so that closing the tab loses nothing.
const form = document.querySelector("#form");
const draft = form.dataset.draft;
const list = document.querySelector("#pictures");
const start = JSON.parse(document.querySelector("#start").textContent);
const shape = Number(form.dataset.width) / Number(form.dataset.height);
const makes = form.dataset.makes;
const fields = ["title", "frames", "seconds", "hold", "pacing", "style", "over", "weight", "strength", "steps"].filter((name) => form.elements[name]);
let lastCaption = null;
let timer = 0;

const pictureOf = (item) => ({
  name: item.dataset.name,
  caption: item.querySelector(".caption").value,
  focus: item.dataset.focus ? JSON.parse(item.dataset.focus) : null,
});
const content = () => {
  const settings = {};
  for (const field of document.querySelectorAll("[data-setting]")) if (field.value.trim()) settings[field.dataset.setting] = field.value;
  const values = Object.fromEntries(fields.map((name) => [name, form.elements[name].value]));
  if (makes === "morph") Object.assign(values, { loop: form.elements.loop.checked, settings });
  return { ...values, pictures: [...list.children].map(pictureOf) };
};
const save = () => {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const saved = document.querySelector("#saved");
    try {
      await studio.ask("PUT", `/api/drafts/${draft}`, content());
      saved.textContent = "Saved as a draft.";
    } catch (problems) {
      saved.textContent = `Not saved: ${problems[0].text}`;
    }
  }, 400);
};
const renumber = () => {
  [...list.children].forEach((item, index) => {
    item.querySelector("img").alt = `Picture ${index + 1}: ${start.uploads[item.dataset.name].called}`;
    item.querySelector(".problem").dataset.for = `pictures.${index}.caption`;
    item.querySelector(".caption").setAttribute("aria-label", `Caption of picture ${index + 1}`);
    const names = { ".focus": "Crop of picture #: arrow keys move it, Delete centres it", ".earlier": "Picture # earlier", ".later": "Picture # later", ".remove": "Remove picture #" };
    for (const [button, name] of Object.entries(names)) item.querySelector(button).setAttribute("aria-label", name.replace("#", index + 1));
    item.querySelector(".earlier").disabled = index === 0;
    item.querySelector(".later").disabled = index === list.children.length - 1;
  });
  document.querySelector("#hint").hidden = !list.children.length;
  save();
};

// The part of a picture that the crop keeps: the largest of the training's shape, as near to the focus as it can be.
const place = (item) => {
  const { width, height } = start.uploads[item.dataset.name];
  const focus = item.dataset.focus ? JSON.parse(item.dataset.focus) : [0.5, 0.5];
  const wide = Math.min(1, (height * shape) / width), high = Math.min(1, width / shape / height);
  const frame = item.querySelector(".window").style, ring = item.querySelector(".focus").style;
  frame.left = `${100 * Math.min(Math.max(focus[0] - wide / 2, 0), 1 - wide)}%`;
  frame.top = `${100 * Math.min(Math.max(focus[1] - high / 2, 0), 1 - high)}%`;
  frame.width = `${100 * wide}%`;
  frame.height = `${100 * high}%`;
  ring.left = `${100 * focus[0]}%`;
  ring.top = `${100 * focus[1]}%`;
};
const moveFocus = (item, x, y) => {
  const within = (value) => Math.round(Math.min(Math.max(value, 0), 1) * 1000) / 1000;
  item.dataset.focus = JSON.stringify([within(x), within(y)]);
  place(item);
  save();
};

const add = (picture) => {
  const item = document.querySelector("#picture").content.firstElementChild.cloneNode(true);
  item.dataset.name = picture.name;
  if (picture.focus) item.dataset.focus = JSON.stringify(picture.focus);
  item.querySelector("img").src = `/media/drafts/${draft}/${picture.name}`;
  const caption = item.querySelector(".caption");
  caption.value = picture.caption ?? "";
  caption.addEventListener("focus", () => { lastCaption = caption; });
  const ring = item.querySelector(".focus"), crop = item.querySelector(".crop");
  const drag = (event) => {
    const box = crop.getBoundingClientRect();
    moveFocus(item, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  // The ring is dragged or its new place clicked at; dragging the picture elsewhere drags it into order.
  ring.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    item.draggable = false;
    ring.focus();
    ring.setPointerCapture(event.pointerId);
    ring.addEventListener("pointermove", drag);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    ring.addEventListener(end, () => {
      item.draggable = true;
      ring.removeEventListener("pointermove", drag);
    });
  }
  crop.addEventListener("click", (event) => { if (event.detail) drag(event); }); // not of a key
  ring.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
    const [x, y] = item.dataset.focus ? JSON.parse(item.dataset.focus) : [0.5, 0.5];
    if (step) moveFocus(item, x + step[0], y + step[1]);
    else if (event.key === "Delete" || event.key === "Backspace") {
      delete item.dataset.focus;
      place(item);
      save();
    } else return;
    event.preventDefault();
  });
  const earlier = item.querySelector(".earlier"), later = item.querySelector(".later");
  const moved = (button, other) => {
    renumber();
    (button.disabled ? other : button).focus();
  };
  earlier.addEventListener("click", () => {
    item.previousElementSibling?.before(item);
    moved(earlier, later);
  });
  later.addEventListener("click", () => {
    item.nextElementSibling?.after(item);
    moved(later, earlier);
  });
  item.querySelector(".remove").addEventListener("click", async () => {
    await studio.ask("DELETE", `/api/drafts/${draft}/pictures/${picture.name}`).catch(() => {});
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    renumber();
    (next?.querySelector(".remove") ?? chooser).focus();
  });
  // A caption is for writing: while one writes in it, its picture is not dragged.
  caption.addEventListener("pointerdown", () => { item.draggable = false; });
  caption.addEventListener("blur", () => { item.draggable = true; });
  item.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData("text/plain", picture.name);
    event.dataTransfer.effectAllowed = "move";
    item.classList.add("dragged");
  });
  item.addEventListener("dragend", () => {
    item.classList.remove("dragged");
    renumber();
  });
  item.addEventListener("dragover", (event) => {
    const moving = list.querySelector(".dragged");
    if (!moving) return;
    event.preventDefault();
    if (moving === item) return;
    const box = item.getBoundingClientRect();
    if (event.clientX < box.left + box.width / 2) item.before(moving);
    else item.after(moving);
  });
  list.append(item);
  place(item);
};

const upload = async (file) => {
  const line = document.createElement("li");
  line.textContent = `${file.name}: sending`;
  document.querySelector("#uploads").append(line);
  try {
    const made = await studio.ask("PUT", `/api/drafts/${draft}/pictures?name=${encodeURIComponent(file.name)}`, file);
    start.uploads[made.name] = made;
    add(made);
    renumber();
    line.remove();
  } catch (problems) {
    line.className = "problem";
    line.textContent = problems.map((problem) => problem.text).join(" ");
  }
};
const take = async (files) => {
  document.querySelectorAll("#uploads .problem").forEach((line) => line.remove());
  for (const file of files) await upload(file); // in the order in which they were chosen
};
const chooser = document.querySelector("#files");
const takeChosen = () => take([...chooser.files]).finally(() => { chooser.value = ""; });
chooser.addEventListener("change", takeChosen);
const drop = document.querySelector("#drop");
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (!carriesFiles(event)) return;
  event.preventDefault();
  take([...event.dataTransfer.files]);
});
list.addEventListener("drop", (event) => { if (!carriesFiles(event)) event.preventDefault(); });

for (const word of document.querySelectorAll(".word")) {
  word.addEventListener("click", () => {
    const caption = lastCaption?.isConnected ? lastCaption : list.querySelector(".caption");
    if (!caption) return;
    caption.value = caption.value ? `${caption.value.trimEnd()} ${word.textContent}` : word.textContent;
    save();
  });
}

// Each problem beside its field; what belongs to none, in the list above the button.
const showProblems = (problems) => {
  const places = [...document.querySelectorAll(".problem[data-for]")];
  for (const line of places) line.textContent = "";
  const rest = [];
  for (const problem of problems) {
    const line = places.find((one) => one.dataset.for === problem.where);
    if (line) line.textContent += `${line.textContent ? " " : ""}${problem.found}. ${problem.fix}`;
    else rest.push(problem);
  }
  studio.list(document.querySelector("#problems"), rest);
  const first = places.find((one) => one.textContent);
  first?.closest("details")?.setAttribute("open", "");
  first?.scrollIntoView({ block: "center" });
};
form.addEventListener("input", save);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = document.querySelector("#make");
  button.disabled = true;
  clearTimeout(timer);
  try {
    const made = await studio.ask("POST", `/api/drafts/${draft}/${makes}`, content());
    location.href = `/jobs/${made.job}`;
  } catch (problems) {
    showProblems(problems);
  } finally {
    button.disabled = false;
  }
});

const kept = start.form;
for (const name of fields) if (kept[name]) form.elements[name].value = kept[name];
if (kept.loop !== undefined && form.elements.loop) form.elements.loop.checked = kept.loop;
for (const [name, value] of Object.entries(kept.settings ?? {})) {
  const field = document.querySelector(`[data-setting="${CSS.escape(name)}"]`);
  if (field) field.value = value;
}
const ordered = (kept.pictures ?? []).filter((picture) => start.uploads[picture.name]);
const names = new Set(ordered.map((picture) => picture.name));
for (const picture of [...ordered, ...Object.values(start.uploads).filter((one) => !names.has(one.name))]) add(picture);
if (list.children.length) renumber();
if (chooser.files.length) takeChosen(); // chosen before this script had come

// A style that is there needs no pictures.
const ofPictures = document.querySelector("#of-pictures");
if (ofPictures && form.elements.style) {
  const choose = () => {
    ofPictures.hidden = Boolean(form.elements.style.value);
    form.elements.title.disabled = Boolean(form.elements.style.value);
  };
  form.elements.style.addEventListener("change", choose);
  choose();
}
