
// Every prompt: filters, order, pages. Text from outside is only ever set as text, never as markup.
(() => {
  const holder = document.getElementById("browse-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  holder.remove();  // the numbers are held once
  const prompts = data.prompts.map(([id, text], at) => ({ id, text, at, words: `${id} ${text}`.toLowerCase() }));
  const SAMPLES = data.samples.length;
  // Where each prompt stands in a dimension's lists, -1 where it has no score; and its rows' means.
  for (const block of Object.values(data.scores)) {
    block.at = new Int32Array(prompts.length).fill(-1);
    block.of.forEach((prompt, place) => { block.at[prompt] = place; });
  }
  const valueOf = (name, prompt, row, sample) => {
    const block = data.scores[name];
    const place = block.at[prompt.at];
    return place < 0 ? null : block.rows[row.index]?.[place * SAMPLES + sample] ?? null;
  };
  const meansOf = (name, row) => {
    const block = data.scores[name];
    block.means ??= [];
    block.means[row.index] ??= Float64Array.from(block.of, (_, place) => {
      let sum = 0, count = 0;
      for (let at = place * SAMPLES; at < (place + 1) * SAMPLES; at += 1) {
        const value = block.rows[row.index]?.[at] ?? null;
        if (value !== null) { sum += value; count += 1; }
      }
      return count ? sum / count : NaN;
    });
    return block.means[row.index];
  };
  const PAGE = 10;
  const NAMES = 3;  // dimensions under a video
  const form = document.getElementById("browse-form");
  const list = document.getElementById("browse-list");
  const place = document.getElementById("browse-place");
  const back = document.getElementById("browse-back");
  const on = document.getElementById("browse-on");
  const page = document.getElementById("browse-page");
  const ends = { back: document.getElementById("browse-end-back"), on: document.getElementById("browse-end-on") };
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
  const cut = data.all > prompts.length ? ` The ${prompts.length} of ${data.all} on which they differ most.` : "";
  const haveVideos = data.rows.some((row) => row.videos);
  document.getElementById("browse-note").textContent =
    "All rows side by side, the first seed of each; disagreement is the largest difference between two rows' scores."
    + cut + (haveVideos ? " Videos are read from the run folder as they come on screen." : " This page lies in no run folder, so there are scores alone.");

  const rowsShown = () => {
    const bits = form.elements.bits.value;
    return data.rows.map((row, index) => ({ ...row, index })).filter((row) => !bits || row.reference || row.bits === bits);
  };
  const wanted = () => form.elements.dimension.value ? [form.elements.dimension.value] : data.dimensions;
  const namesOf = (prompt) => wanted().filter((name) => data.scores[name].at[prompt.at] >= 0);
  // How far the rows are apart on each prompt, in the dimension that tells most; -Infinity without a score.
  const weights = (rows, order, names) => {
    const most = new Float64Array(prompts.length).fill(-Infinity);
    const whole = rows.findIndex((row) => row.reference);
    for (const name of names) {
      const means = rows.map((row) => meansOf(name, row));
      data.scores[name].of.forEach((prompt, place) => {
        let low = Infinity, high = -Infinity;
        for (const of of means) {
          const value = of[place];
          if (value < low) low = value;
          if (value > high) high = value;
        }
        if (order === "loss") high = whole < 0 ? NaN : means[whole][place];
        if (high - low > most[prompt]) most[prompt] = high - low;
      });
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
      video.dataset.src = `${row.videos}${encodeURIComponent(`${prompt.id}-${data.samples[sample]}`)}.mp4`;
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
      const value = valueOf(name, prompt, row, sample);
      caption.append(make("br"), `${name} ${value === null ? "-" : value.toFixed(data.digits)}`);
    }
    figure.append(caption);
    return figure;
  };

  const article = (prompt, rows, apart) => {
    const element = make("article");
    const all = namesOf(prompt);
    const widths = new Map(all.map((name) => [name, apart(name)[prompt.at]]));
    const names = [...all].sort((a, b) => widths.get(b) - widths.get(a)).slice(0, NAMES);
    const left = all.length - names.length;
    element.append(make("h3", prompt.text || prompt.id));
    const spread = Math.max(...widths.values());
    const told = Number.isFinite(spread) ? ` · disagreement ${spread.toFixed(data.digits)}` : "";
    const more = left ? ` · under each video the ${NAMES} dimensions that differ most, of ${all.length}` : "";
    element.append(make("small", `prompt ${prompt.id}${told}${more}`));
    const has = (sample) => names.some((name) => data.rows.some((_, index) => valueOf(name, prompt, { index }, sample) !== null));
    const samples = data.samples.map((_, sample) => sample).filter(has);
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
    const first = build(samples[0] ?? 0);
    if (samples.length > 1) {
      const label = make("label", "sample ");
      const select = make("select");
      for (const sample of samples) option(select, sample, String(data.samples[sample]));
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
    let found = prompts.filter((prompt) => !form.elements.dimension.value || namesOf(prompt).length);
    if (words.length) found = found.filter((prompt) => words.every((word) => prompt.words.includes(word)));
    if (order !== "own") {
      const keys = weights(rows, order, wanted());
      found.sort((a, b) => (keys[b.at] > keys[a.at]) - (keys[b.at] < keys[a.at]));
    }
    start = Math.max(0, Math.min(start, Math.floor((found.length - 1) / PAGE) * PAGE));
    const shown = found.slice(start, start + PAGE);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    for (const video of list.querySelectorAll("video")) near.unobserve(video);
    const known = new Map();
    const apart = (name) => known.get(name) ?? known.set(name, weights(rows, "spread", [name])).get(name);
    list.replaceChildren(...shown.map((prompt) => article(prompt, rows, apart)));
    place.textContent = found.length ? `${start + 1} to ${start + shown.length} of ${found.length} prompts` : "no prompt fits";
    back.disabled = ends.back.disabled = start === 0;
    on.disabled = ends.on.disabled = start + PAGE >= found.length;
    page.max = pages;
    page.value = start / PAGE + 1;
    document.getElementById("browse-pages").textContent = `of ${pages}`;
    document.getElementById("browse-end").hidden = pages === 1;
  };
  form.addEventListener("input", () => { start = 0; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  const turn = (step) => () => {
    start += step;
    show();
    document.getElementById("browse").scrollIntoView();
  };
  for (const button of [back, ends.back]) button.addEventListener("click", turn(-PAGE));
  for (const button of [on, ends.on]) button.addEventListener("click", turn(PAGE));
  page.addEventListener("change", () => {
    start = Math.max(0, Math.round(Number(page.value) || 1) - 1) * PAGE;
    turn(0)();
  });
  show();
})();

// A link to a row's recipe opens it.
const openTarget = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();
