// Scrubbing through the frames of each morph, all variants at once. Without it the page still shows the clips and strips.
for (const viewer of document.querySelectorAll(".viewer")) {
  const slider = viewer.querySelector("input");
  const button = viewer.querySelector("button");
  const place = viewer.querySelector(".place");
  const stacks = [...viewer.querySelectorAll(".stack")].map((stack) => [...stack.children]);
  let timer = 0;

  const show = () => {
    const number = slider.valueAsNumber;
    for (const frames of stacks) frames.forEach((frame, at) => { frame.hidden = at !== number; });
    const told = stacks[0][number].dataset;
    place.querySelector("strong").textContent = told.place;
    place.querySelector("span").textContent = told.said;
    slider.setAttribute("aria-valuetext", `${told.place}: ${told.said}`);
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  };
  const step = () => {
    slider.value = (slider.valueAsNumber + 1) % stacks[0].length;
    show();
  };
  button.addEventListener("click", () => {
    if (timer) return stop();
    timer = setInterval(step, 1000 / Number(viewer.dataset.fps));
    button.textContent = "Pause";
  });
  slider.addEventListener("input", () => { stop(); show(); });
  viewer.querySelector(".controls").hidden = false;
  show();
}

// An animated picture cannot be stopped: a still one takes its place.
for (const figure of document.querySelectorAll(".clip")) {
  const picture = figure.querySelector("img");
  const button = figure.querySelector("button");
  const moving = picture.src;
  const toggle = () => {
    const still = picture.src === moving;
    picture.src = still ? figure.dataset.still : moving;
    button.textContent = still ? "Play clip" : "Pause clip";
  };
  button.addEventListener("click", toggle);
  button.hidden = false;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) toggle();
}
