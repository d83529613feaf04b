
// Every prompt: filters, order, pages. Text from outside is only ever set as text, never as markup.
(() => {
  const holder = document.getElementById("browse-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const PAGE = 10;
  const NAMES = 3;  // dimensions under a video
  const form = document.getElementById("browse-form");
  const list = document.getElementById("browse-list");
  const place = document.getElementById("browse-place");
  const back = document.getElementById("browse-back");
  const on = document.getElementById("browse-on");
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const option = (select, value, text) => {
    const element = make("option", text);
    element.value = value;
    select.append(element);
  };
  option(form.elements.dimension, "", "any");
  for (const name of data.dimensions) option(form.elements.dimension, name, name);
  option(form.elements.bits, "", "all");
  const widths = new Set(data.rows.filter((row) => !row.reference).map((row) => row.bits));
  for (const bits of widths) option(form.elements.bits, bits, bits);
  const cut = data.all > data.prompts.length ? ` The ${data.prompts.length} of ${data.all} on which they differ most.` : "";
  const haveVideos = data.rows.some((row) => row.videos);
  document.getElementById("browse-note").textContent =
    "All rows side by side, the first seed of each; disagreement is the largest difference between two rows' scores."
    + cut + (haveVideos ? " Videos are read from the run folder as they come on screen." : " This page lies in no run folder, so there are scores alone.");

  const mean = (values) => {
    const known = (values ?? []).filter((value) => value !== null);
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  };
  const rowsShown = () => {
    const bits = form.elements.bits.value;
    return data.rows.map((row, index) => ({ ...row, index })).filter((row) => !bits || row.reference || row.bits === bits);
  };
  const namesOf = (prompt) => {
    const wanted = form.elements.dimension.value;
    return Object.keys(prompt.scores).filter((name) => !wanted || name === wanted);
  };
  const weight = (prompt, rows, order, only) => {
    let most = -Infinity;
    for (const name of only ? [only] : namesOf(prompt)) {
      const means = rows.map((row) => mean(prompt.scores[name][row.index]));
      const known = means.filter((value) => value !== null);
      if (!known.length) continue;
      if (order === "loss") {
        const whole = means[rows.findIndex((row) => row.reference)];
        if (whole !== undefined && whole !== null) most = Math.max(most, whole - Math.min(...known));
      } else most = Math.max(most, Math.max(...known) - Math.min(...known));
    }
    return most;
  };

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const video = entry.target;
      if (entry.isIntersecting && !video.src) video.src = video.dataset.src;
      else if (!entry.isIntersecting && video.src) {
        video.pause();
        video.removeAttribute("src");
        video.load();  // frees the decoder: thousands of videos, a screenful in memory
      }
    }
  }, { rootMargin: "300px" });

  // All videos of one prompt follow the first that can play: start, stop, place.
  const together = (article, videos) => {
    const bar = make("div", undefined, "together");
    const button = make("button", "Play");
    button.type = "button";
    const slider = make("input");
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.001, value: 0 });
    slider.setAttribute("aria-label", "Place in all videos of this prompt");
    bar.append(button, slider);
    let playing = false;
    const ready = () => videos.filter((video) => video.src && video.duration);
    const follow = () => {
      if (!article.isConnected) return;
      const [leader, ...others] = ready();
      if (leader) {
        slider.value = leader.currentTime / leader.duration;
        for (const video of others) {
          const apart = Math.abs(video.currentTime - leader.currentTime);
          if (Math.min(apart, leader.duration - apart) > 0.08) video.currentTime = Math.min(leader.currentTime, video.duration);
        }
      }
      if (playing) requestAnimationFrame(follow);
    };
    const set = (state) => {
      playing = state;
      button.textContent = playing ? "Pause" : "Play";
      for (const video of ready()) playing ? video.play().catch(() => {}) : video.pause();
      if (playing) requestAnimationFrame(follow);
    };
    button.addEventListener("click", () => set(!playing));
    slider.addEventListener("input", () => {
      if (playing) set(false);
      for (const video of ready()) video.currentTime = slider.value * video.duration;
    });
    for (const video of videos) {
      video.addEventListener("loadedmetadata", () => {
        const leader = ready().find((other) => other !== video);
        if (leader) video.currentTime = leader.currentTime;
        if (playing) video.play().catch(() => {});
      });
    }
    new IntersectionObserver((entries) => {
      for (const entry of entries) if (!entry.isIntersecting && playing) set(false);
    }).observe(article);
    return bar;
  };

  const clip = (row, prompt, sample, names) => {
    const figure = make("figure", undefined, "clip");
    if (row.videos) {
      const video = make("video");
      Object.assign(video, { loop: true, muted: true, playsInline: true, preload: "metadata", tabIndex: 0 });
      video.dataset.src = `${row.videos}${encodeURIComponent(`${prompt.id}-${sample}`)}.mp4`;
      video.setAttribute("aria-label", `${row.method} at ${row.bits}: ${prompt.text || prompt.id}`);
      video.addEventListener("error", () => {
        if (video.getAttribute("src")) video.replaceWith(make("div", "no video", "absent"));
      });
      near.observe(video);
      figure.append(video);
    }
    const caption = make("figcaption");
    caption.append(make("b", row.method), ` ${row.bits}`);
    for (const name of names) {
      const value = prompt.scores[name][row.index]?.[sample];
      caption.append(make("br"), `${name} ${value === null || value === undefined ? "-" : value.toFixed(data.digits)}`);
    }
    figure.append(caption);
    return figure;
  };

  const article = (prompt, rows) => {
    const element = make("article");
    const all = namesOf(prompt);
    const widths = new Map(all.map((name) => [name, weight(prompt, rows, "spread", name)]));
    const names = [...all].sort((a, b) => widths.get(b) - widths.get(a)).slice(0, NAMES);
    const left = all.length - names.length;
    element.append(make("h3", prompt.text || prompt.id));
    const spread = weight(prompt, rows, "spread");
    const told = Number.isFinite(spread) ? ` · disagreement ${spread.toFixed(data.digits)}` : "";
    const more = left ? ` · under each video the ${NAMES} dimensions that differ most, of ${all.length}` : "";
    element.append(make("small", `prompt ${prompt.id}${told}${more}`));
    const samples = Math.max(1, ...names.flatMap((name) => prompt.scores[name].map((values) => values?.length ?? 0)));
    const strip = make("div", undefined, "strip");
    const fill = (sample) => strip.replaceChildren(...rows.map((row) => clip(row, prompt, sample, names)));
    let bar = null;
    const build = (sample) => {
      fill(sample);
      const videos = [...strip.querySelectorAll("video")];
      const fresh = videos.length ? together(element, videos) : null;
      if (bar) bar.replaceWith(...(fresh ? [fresh] : []));
      bar = fresh;
      return fresh;
    };
    const first = build(0);
    if (samples > 1) {
      const label = make("label", "sample ");
      const select = make("select");
      for (let sample = 0; sample < samples; sample += 1) option(select, sample, String(sample));
      select.addEventListener("change", () => build(Number(select.value)));
      label.append(select);
      element.append(make("br"), label);
    }
    if (first) element.append(first);
    element.append(strip);
    return element;
  };

  let start = 0;
  const show = () => {
    const rows = rowsShown();
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const order = form.elements.order.value;
    let found = data.prompts.filter((prompt) => namesOf(prompt).length || !form.elements.dimension.value);
    found = found.filter((prompt) => words.every((word) => `${prompt.id} ${prompt.text}`.toLowerCase().includes(word)));
    if (order !== "own") {
      const keys = new Map(found.map((prompt) => [prompt, weight(prompt, rows, order)]));
      found.sort((a, b) => (keys.get(b) > keys.get(a)) - (keys.get(b) < keys.get(a)));
    }
    start = Math.max(0, Math.min(start, Math.floor((found.length - 1) / PAGE) * PAGE));
    const page = found.slice(start, start + PAGE);
    for (const video of list.querySelectorAll("video")) near.unobserve(video);
    list.replaceChildren(...page.map((prompt) => article(prompt, rows)));
    place.textContent = found.length ? `${start + 1} to ${start + page.length} of ${found.length} prompts` : "no prompt fits";
    back.disabled = start === 0;
    on.disabled = start + PAGE >= found.length;
  };
  form.addEventListener("input", () => { start = 0; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  const turn = (step) => () => {
    start += step;
    show();
    document.getElementById("browse").scrollIntoView();
  };
  back.addEventListener("click", turn(-PAGE));
  on.addEventListener("click", turn(PAGE));
  show();
})();

// A link to a row's recipe opens it.
const openTarget = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();
