
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
  addOption(form.elements.dimension, "", "any");
  for (const name of data.dimensions) addOption(form.elements.dimension, name, name);
  addOption(form.elements.bits, "", "all");
  const widths = new Set(data.rows.filter((row) => !row.reference).map((row) => row.bits));
  for (const bits of widths) addOption(form.elements.bits, bits, bits);
  form.elements.bits.value = data.focus;
  const picked = pickMethods([...new Set(data.rows.filter((row) => !row.reference).map((row) => row.method))].sort());
  form.querySelector(".slot").replaceWith(picked.details);
  const inside = new Map();
  for (const each of document.querySelectorAll("script.clip-data")) inside.set(`${each.dataset.row}/${each.dataset.prompt}`, each);
  const chosen = new Map(data.chosen.map(([id, dimension], at) => [id, { at, dimension }]));
  if (chosen.size) {
    const first = new Option("chosen by rule first", "rule");
    form.elements.order.prepend(first);
    form.elements.order.value = "rule";
  }
  const cut = data.all > prompts.length ? ` The ${prompts.length} of ${data.all} on which they differ most.` : "";
  const haveVideos = data.rows.some((row) => row.videos) || chosen.size > 0;
  form.querySelector(".size").hidden = !haveVideos;
  const seeds = `Rows side by side, the first seed of each${data.focus ? `; of ${data.rows.length} rows those of ${data.focus} at first` : ""}.`;
  const rule = chosen.size ? ` The first ${chosen.size} prompts: ${data.rule[0].toLowerCase()}${data.rule.slice(1)} Their ${data.inside} videos lie inside this page.` : "";
  document.getElementById("browse-note").textContent =
    `${seeds} Disagreement is the largest difference between two rows' scores.${cut}${rule}`
    + (haveVideos ? ` ${chosen.size ? "Others" : "Videos"} are read from the run folder as they come on screen.` : " This page lies in no run folder, so there are scores alone.");

  const rowsShown = () => {
    const bits = form.elements.bits.value;
    return data.rows.map((row, index) => ({ ...row, index })).filter((row) => row.reference || (!bits || row.bits === bits) && picked.has(row.method));
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

  // A video is an element only while it is near the screen: thousands of them, a screenful in memory.
  const mount = (frame) => {
    const video = make("video");
    Object.assign(video, { loop: true, muted: true, playsInline: true, preload: "metadata" });
    video.setAttribute("aria-label", frame.dataset.label);
    video.addEventListener("error", () => {
      if (!video.getAttribute("src")) return;
      near.unobserve(frame);
      frame.replaceChildren("no video");
      frame.classList.add("absent");
    });
    video.addEventListener("loadedmetadata", () => {
      list.style.setProperty("--shape", `${video.videoWidth} / ${video.videoHeight}`);
      video.classList.toggle("large", video.videoHeight > 144);
      frame.dispatchEvent(new CustomEvent("ready", { detail: video }));
    });
    video.src = inside.get(frame.dataset.key)?.textContent.replace(/^/, "data:video/mp4;base64,") ?? frame.dataset.src;
    frame.replaceChildren(video);
  };
  const unmount = (frame) => {
    const video = frame.querySelector("video");
    if (!video) return;
    video.pause();
    video.removeAttribute("src");
    video.load();  // frees the decoder
    frame.replaceChildren();
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) unmount(entry.target);
      else if (!entry.target.firstChild) mount(entry.target);
    }
  }, { rootMargin: "300px" });

  // All videos of one prompt follow the first that can play: start, stop, place.
  const together = (article, strip) => {
    const bar = make("div", undefined, "together");
    const button = make("button", "Play");
    button.type = "button";
    const slider = make("input");
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.001, value: 0 });
    slider.setAttribute("aria-label", "Place in all videos of this prompt");
    bar.append(button, slider);
    let playing = false;
    const ready = () => [...strip.querySelectorAll("video")].filter((video) => video.duration);
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
    strip.addEventListener("ready", ({ detail: video }) => {
      const leader = ready().find((other) => other !== video);
      if (leader) video.currentTime = leader.currentTime;
      if (playing) video.play().catch(() => {});
    }, true);
    strip.addEventListener("click", (event) => { if (event.target.matches("video")) set(!playing); });
    new IntersectionObserver((entries) => {
      for (const entry of entries) if (!entry.isIntersecting && playing) set(false);
    }).observe(article);
    return bar;
  };

  const shownValue = (value) => value === null ? "-" : value.toFixed(data.digits);
  const clip = (row, prompt, sample, names) => {
    const figure = make("figure", undefined, "clip");
    const key = `${row.index}/${prompt.id}`;
    const isInside = data.samples[sample] === 0 && inside.has(key);
    if (row.videos || isInside) {
      const frame = make("div", undefined, "frame");
      if (isInside) frame.dataset.key = key;
      frame.dataset.src = `${row.videos ?? ""}${encodeURIComponent(`${prompt.id}-${data.samples[sample]}`)}.mp4`;
      frame.dataset.label = `${row.method} at ${row.bits}: ${prompt.text || prompt.id}`;
      near.observe(frame);
      figure.append(frame);
    }
    const caption = make("figcaption");
    caption.append(make("b", row.method), ` ${row.bits}`);
    for (const name of names) caption.append(make("br"), `${name} ${shownValue(valueOf(name, prompt, row, sample))}`);
    figure.append(caption);
    return figure;
  };

  // All scores of one prompt: rows by dimensions, shaded by the fall from full precision.
  const grid = (rows, prompt, sample, names) => {
    const scroll = make("div", undefined, "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", `Scores of ${prompt.text || prompt.id}`);
    const table = make("table", undefined, "heat");
    const head = table.createTHead().insertRow();
    for (const name of ["method", "bits", ...names]) {
      const cell = make("th", undefined, name === "method" || name === "bits" ? "text" : "");
      cell.scope = "col";
      name.split("_").forEach((part, at) => cell.append(...(at ? ["_", make("wbr")] : []), part));
      head.append(cell);
    }
    const body = table.createTBody();
    const whole = rows.find((row) => row.reference);
    for (const row of rows) {
      const line = body.insertRow();
      if (row.reference) line.className = "reference";
      const first = make("th", row.method);
      first.scope = "row";
      line.append(first, make("td", row.bits));
      for (const name of names) {
        const value = valueOf(name, prompt, row, sample);
        const top = whole ? valueOf(name, prompt, whole, sample) : null;
        const cell = make("td", shownValue(value));
        if (value !== null && top > 0) cell.style.setProperty("--fall", Math.min(1, Math.max(0, (top - value) / top)).toFixed(2));
        line.append(cell);
      }
    }
    scroll.append(table);
    return scroll;
  };

  // What stands under a prompt's text: made when it comes near the screen.
  const fill = (element, prompt, rows, apart) => {
    const all = namesOf(prompt);
    const widths = new Map(all.map((name) => [name, apart(name)[prompt.at]]));
    const sorted = [...all].sort((a, b) => widths.get(b) - widths.get(a));
    const names = sorted.slice(0, NAMES);
    const left = all.length - names.length;
    const haveClips = rows.some((row) => row.videos || inside.has(`${row.index}/${prompt.id}`));
    const spread = Math.max(...widths.values());
    const told = Number.isFinite(spread) ? ` · disagreement ${spread.toFixed(data.digits)}` : "";
    const more = left && haveClips ? ` · under each video the ${NAMES} dimensions that differ most, of ${all.length}` : "";
    const why = chosen.has(prompt.id) ? ` · chosen by rule for ${chosen.get(prompt.id).dimension}` : "";
    element.append(make("small", `prompt ${prompt.id}${told}${more}${why}`));
    const has = (sample) => names.some((name) => data.rows.some((_, index) => valueOf(name, prompt, { index }, sample) !== null));
    const samples = data.samples.map((_, sample) => sample).filter(has);
    let sample = samples[0] ?? 0;
    const body = make("div");
    const build = () => {
      for (const frame of body.querySelectorAll(".frame")) near.unobserve(frame);
      if (!haveClips) {
        body.replaceChildren(grid(rows, prompt, sample, sorted));
        return;
      }
      const strip = make("div", undefined, "strip");
      rows.forEach((row, at) => {
        if (at > 1 && row.bits !== rows[at - 1].bits) strip.append(make("div", undefined, "break"));
        strip.append(clip(row, prompt, sample, names));
      });
      const details = make("details");
      details.append(make("summary", "All scores of this prompt"));
      details.addEventListener("toggle", () => {
        if (details.open && !details.querySelector("table")) details.append(grid(rows, prompt, sample, sorted));
      });
      body.replaceChildren(together(element, strip), strip, details);
    };
    if (samples.length > 1) {
      const label = make("label", "sample ");
      const select = make("select");
      for (const each of samples) addOption(select, each, String(data.samples[each]));
      select.addEventListener("change", () => { sample = Number(select.value); build(); });
      label.append(select);
      element.append(make("br"), label);
    }
    build();
    element.append(body);
  };
  const waiting = new Map();
  const soon = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const begin = entry.isIntersecting && waiting.get(entry.target);
      if (!begin) continue;
      soon.unobserve(entry.target);
      waiting.delete(entry.target);
      entry.target.style.removeProperty("min-height");
      begin();
    }
  }, { rootMargin: "600px" });
  const article = (prompt, rows, apart) => {
    const element = make("article");
    element.append(make("h3", prompt.text || prompt.id));
    element.style.minHeight = "60vh";
    waiting.set(element, () => fill(element, prompt, rows, apart));
    soon.observe(element);
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
      const turn = (prompt) => order === "rule" ? chosen.get(prompt.id)?.at ?? chosen.size : 0;
      found.sort((a, b) => turn(a) - turn(b) || (keys[b.at] > keys[a.at]) - (keys[b.at] < keys[a.at]));
    }
    start = Math.max(0, Math.min(start, Math.floor((found.length - 1) / PAGE) * PAGE));
    const shown = found.slice(start, start + PAGE);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    for (const frame of list.querySelectorAll(".frame")) near.unobserve(frame);
    for (const element of waiting.keys()) soon.unobserve(element);
    waiting.clear();
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
  form.addEventListener("input", (event) => {
    if (event.target.name === "size") {
      list.style.setProperty("--clip", `${form.elements.size.value}px`);
      return;
    }
    start = 0;
    show();
  });
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
  for (let each = target; each; each = each.parentElement) if (each instanceof HTMLDetailsElement) each.open = true;
  target?.scrollIntoView();
};
addEventListener("hashchange", openTarget);
document.addEventListener("click", (event) => {  // the same link twice is no change
  if (event.target.closest?.("a")?.hash === location.hash) openTarget();
});
openTarget();
