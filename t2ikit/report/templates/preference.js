// The page of a comparison. Answers are kept in this browser and leave it in an exported file only.

(() => {
  "use strict";
  const CHOICES = ["left", "same", "right"];
  const SMALL = 200; // pixels; a smaller picture is shown with its pixels instead of a blur
  const EXPLAINED = {
    quality: "Look at the pictures alone, whatever the text says.",
    consistency: "Look at what the text says alone, whatever looks better.",
  };
  const byId = (id) => document.getElementById(id);
  const page = JSON.parse(byId("data").textContent);

  let rater = null;
  let order = []; // all comparisons of the rater
  let ratings = []; // of the first ones
  let announced = null; // the question that the rater was told
  let since = null; // when both pictures could be seen, or null
  let exported = 0;
  let kept = true;

  // ---------------------------------------------------------------- what the browser keeps

  const place = (name) => `t2ikit preference ${page.page} ${name}`;

  // A browser may have no storage, refuse it to pages from the disk, or have no room left.
  function stored(read) {
    try {
      return read();
    } catch {
      return null;
    }
  }

  const keptOf = (name) => stored(() => localStorage.getItem(place(name)));

  function keep() {
    const text = JSON.stringify(ratings);
    stored(() => localStorage.setItem(place(rater), text));
    kept = keptOf(rater) === text;
    byId("unkept").hidden = kept;
  }

  // The answers of a rater, as far as they are those to the first comparisons.
  function readRatings(name, comparisons) {
    const entries = stored(() => JSON.parse(keptOf(name))) ?? [];
    const fits = (entry, index) =>
      entry && comparisons[index] && CHOICES.includes(entry.choice) && Number.isFinite(entry.ms) &&
      Object.entries(comparisons[index]).every(([field, value]) => entry[field] === value);
    const wrong = Array.isArray(entries) ? entries.findIndex((entry, index) => !fits(entry, index)) : 0;
    return wrong < 0 ? entries : entries.slice(0, wrong);
  }

  // ---------------------------------------------------------------- screens

  function show() {
    closeLarge();
    const comparison = rater === null ? null : order[ratings.length];
    const screen = rater === null ? "start" : !comparison ? "done" : comparison.question === announced ? "compare" : "task";
    for (const name of ["start", "task", "compare", "done"]) byId(name).hidden = name !== screen;
    byId("footer").hidden = rater === null;
    byId("zoom").disabled = screen !== "compare";
    byId("undo").disabled = ratings.length === 0;
    byId("progress").max = order.length;
    byId("progress").value = ratings.length;
    byId("count").textContent = `${rater}: ${ratings.length} of ${order.length} answered`;
    since = null;
    if (screen === "start") byId("rater").focus();
    if (screen === "task") announce(comparison.question);
    if (screen === "compare") showPair(comparison);
    if (screen === "done") byId("export").focus();
  }

  function announce(name) {
    const index = page.questions.findIndex((question) => question.name === name);
    byId("part").textContent = page.questions.length > 1 ? `Part ${index + 1} of ${page.questions.length}` : "";
    byId("announced").textContent = page.questions[index].text;
    byId("explained").textContent = EXPLAINED[name] ?? "";
    byId("begin").focus();
  }

  function addressOf(name) {
    if (page.folder === null) return byId(name).textContent;
    return `${encodeURIComponent(page.folder)}/${name}.png`;
  }

  async function showPair(comparison) {
    byId("question").textContent = page.questions.find(({ name }) => name === comparison.question).text;
    byId("prompt").textContent = page.prompts.find(({ id }) => id === comparison.prompt).text;
    byId("trouble").hidden = true;
    byId("pair").classList.add("waiting"); // both appear at once
    const images = [byId("left"), byId("right")];
    images[0].src = addressOf(comparison.left);
    images[1].src = addressOf(comparison.right);
    try {
      await Promise.all(images.map((image) => image.decode()));
    } catch {
      if (order[ratings.length] === comparison) byId("trouble").hidden = false;
      return;
    }
    if (order[ratings.length] !== comparison || byId("compare").hidden) return; // undone meanwhile
    for (const image of images) image.classList.toggle("small", image.naturalWidth < SMALL);
    byId("pair").classList.remove("waiting");
    since = performance.now();
    const next = order[ratings.length + 1];
    if (next && page.folder !== null) for (const name of [next.left, next.right]) new Image().src = addressOf(name);
  }

  // ---------------------------------------------------------------- what a rater does

  function begin(name) {
    rater = name;
    order = comparisonsOf(page, rater);
    ratings = readRatings(rater, order);
    announced = null;
    exported = 0;
    stored(() => sessionStorage.setItem(place(""), rater)); // of this tab: a reload goes on
    keep();
    show();
  }

  function answer(choice) {
    if (since === null) return; // pictures that were not seen yet
    const ms = Math.round(performance.now() - since);
    ratings.push({ ...order[ratings.length], choice, ms });
    keep();
    show();
  }

  function undo() {
    if (rater === null || ratings.length === 0) return;
    const taken = ratings.pop();
    announced = taken.question;
    keep();
    show();
  }

  function exportFile() {
    if (rater === null) return;
    const content = JSON.stringify({ page: page.page, rater, ratings }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = `preference-${page.page}-${rater.replace(/[^\p{L}\p{N}]+/gu, "_")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    exported = ratings.length;
    byId("count").textContent = `${rater}: ${ratings.length} of ${order.length} answers exported`;
  }

  function enlarge(side) {
    if (since === null) return;
    byId("enlarged").src = byId(side).src;
    byId("enlarged").className = byId(side).className;
    byId("side").textContent = byId("enlarged").alt = side === "left" ? "Left picture" : "Right picture";
    byId("large").dataset.side = side;
    byId("large").hidden = false;
    byId("large").focus();
  }

  function closeLarge() {
    byId("large").hidden = true;
    byId("large").dataset.side = "";
    byId("enlarged").removeAttribute("src");
  }

  // Left, right, off: at the same place, so that a change is seen at once.
  function zoom() {
    const side = byId("large").dataset.side;
    if (side === "right") closeLarge();
    else enlarge(side === "left" ? "right" : "left");
  }

  // ---------------------------------------------------------------- keys and buttons

  const KEYS = {
    ArrowLeft: () => answer("left"),
    ArrowDown: () => answer("same"),
    ArrowRight: () => answer("right"),
    Backspace: undo,
    Escape: closeLarge,
    z: zoom,
    e: exportFile,
  };

  addEventListener("keydown", (event) => {
    const key = event.key ?? ""; // some browsers fill in a form by an event without one
    // Held on a button, Enter presses it again and again.
    if (event.repeat && (key === "Enter" || key === " ") && event.target.tagName === "BUTTON") event.preventDefault();
    const act = KEYS[key.length === 1 ? key.toLowerCase() : key];
    if (!act || rater === null || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (!event.repeat) act(); // a key that is held answers once
  });

  for (const button of document.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", (event) => {
      if (event.detail < 2) answer(button.dataset.choice); // a double click answers once; a key has no detail
    });
  }
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("rater").value.normalize("NFC").replace(/[\p{Cc}\p{Cs}\s]+/gu, " ").trim();
    if (name) begin(name);
    else byId("rater").value = "";
  });
  byId("begin").addEventListener("click", () => {
    announced = order[ratings.length].question;
    show();
  });
  byId("undo").addEventListener("click", undo);
  byId("zoom").addEventListener("click", zoom);
  byId("export").addEventListener("click", exportFile);
  byId("show-left").addEventListener("click", () => enlarge("left"));
  byId("show-right").addEventListener("click", () => enlarge("right"));
  byId("large").addEventListener("click", closeLarge);
  byId("change").addEventListener("click", () => {
    if (!kept && ratings.length > exported && !confirm("Your answers are not exported. Leave them?")) return;
    stored(() => sessionStorage.removeItem(place("")));
    rater = null;
    ratings = [];
    byId("rater").value = "";
    show();
  });
  addEventListener("storage", (event) => {
    if (rater === null || event.key !== place(rater)) return; // another tab of the same rater
    ratings = readRatings(rater, order);
    show();
  });
  addEventListener("beforeunload", (event) => {
    if (!kept && ratings.length > exported) event.preventDefault();
  });

  for (const { text } of page.questions) byId("tasks").append(Object.assign(document.createElement("li"), { textContent: text }));
  const before = stored(() => sessionStorage.getItem(place("")));
  if (before) begin(before);
  else show();
})();
