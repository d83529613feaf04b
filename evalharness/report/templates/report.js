"use strict";
// Sorting: a click on a column's name sorts by it, a second click turns the order; empty cells stay last.
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const column = head.cellIndex;
    const descending = head.getAttribute("aria-sort") !== "descending" && !head.classList.contains("text")
      || head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort ?? "";
    const numeric = !head.classList.contains("text");
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
      return descending ? -order : order;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  });
}

// Videos: only those on screen play; all of one prompt start together.
const videos = [...document.querySelectorAll("video")];
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
const visible = new Set();
const update = (video) => {
  if (playing && visible.has(video)) video.play().catch(() => {});
  else video.pause();
};
const restart = (group) => {
  for (const video of group) video.currentTime = 0;
  for (const video of group) update(video);
};
const watcher = new IntersectionObserver((entries) => {
  const strips = new Set();
  for (const entry of entries) {
    if (entry.isIntersecting) {
      visible.add(entry.target);
      entry.target.preload = "metadata";  // not before: a page with a hundred videos opens without reading one
      strips.add(entry.target.closest(".strip"));
    } else {
      visible.delete(entry.target);
      update(entry.target);
    }
  }
  for (const strip of strips) restart([...strip.querySelectorAll("video")].filter((v) => visible.has(v)));
});
for (const video of videos) {
  const enlarge = () => video.classList.toggle("large", video.videoHeight > 144);
  if (video.readyState) enlarge();
  video.addEventListener("loadedmetadata", enlarge);
  // Controls would cover half of a small paused frame: they come with the pointer, the focus or a tap.
  video.controls = false;
  video.tabIndex = 0;
  for (const name of ["pointerenter", "focus"]) video.addEventListener(name, () => { video.controls = true; });
  for (const name of ["pointerleave", "blur"]) video.addEventListener(name, () => { video.controls = false; });
  watcher.observe(video);
}
document.getElementById("restart")?.addEventListener("click", () => {
  playing = true;
  restart(videos);
});
document.getElementById("pause")?.addEventListener("click", () => {
  playing = false;
  videos.forEach(update);
});
