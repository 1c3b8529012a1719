// Scrubbing through the frames of each morph, all variants at once. Without it the page still shows the clips and strips.
for (const viewer of document.querySelectorAll(".viewer")) {
  const slider = viewer.querySelector("input");
  const button = viewer.querySelector("button");
  const position = viewer.querySelector(".position");
  const panes = [...viewer.querySelectorAll(".panes figcaption span")];
  const stacks = [...viewer.querySelectorAll(".stack")].map((stack) => [...stack.children]);
  let timer = 0;

  const show = () => {
    const number = slider.valueAsNumber;
    for (const frames of stacks) frames.forEach((frame, index) => { frame.hidden = index !== number; });
    stacks.forEach((frames, pane) => { panes[pane].textContent = frames[number].dataset.alpha; });
    const frame = stacks[0][number].dataset;
    position.querySelector("strong").textContent = frame.position;
    position.querySelector("span").textContent = frame.caption;
    slider.setAttribute("aria-valuetext", `${frame.position}: ${frame.caption}`);
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
    const pause = picture.src === moving;
    picture.src = pause ? figure.dataset.still : moving;
    button.textContent = pause ? "Play clip" : "Pause clip";
  };
  button.addEventListener("click", toggle);
  button.hidden = false;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) toggle();
}
