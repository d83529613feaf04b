"use strict";
// Sorting: a click on a column's name sorts by it, a second click turns the order; empty cells stay last.
const makeSortable = (root) => {
  for (const button of root.querySelectorAll("table.sortable th button")) {
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
};
makeSortable(document);

const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};
const addOption = (select, value, text) => {
  const element = make("option", text);
  element.value = value;
  select.append(element);
};

// A named list, the first of which stands for all.
const labelled = (text, name, all, values) => {
  const label = make("label", `${text} `);
  const select = make("select");
  select.name = name;
  addOption(select, "", all);
  for (const value of values) addOption(select, value, value);
  label.append(select);
  return { label, select };
};

// A list of methods to tick; says what is ticked. Full precision always stays.
const pickMethods = (methods) => {
  const details = make("details", undefined, "pick");
  const summary = make("summary");
  const box = make("div");
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Methods");
  const all = make("button", "All");
  const none = make("button", "None");
  all.type = none.type = "button";
  const ticks = methods.map((name) => {
    const label = make("label");
    const tick = make("input");
    Object.assign(tick, { type: "checkbox", name: "method", value: name, checked: true });
    label.append(tick, ` ${name}`);
    return { tick, label };
  });
  const tell = () => {
    const on = ticks.filter(({ tick }) => tick.checked);
    const what = on.length === ticks.length ? "all" : on.length === 1 ? on[0].tick.value : `${on.length} of ${ticks.length}`;
    summary.textContent = `Methods: ${what}`;
  };
  const set = (state) => () => {
    for (const { tick } of ticks) tick.checked = state;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  all.addEventListener("click", set(true));
  none.addEventListener("click", set(false));
  box.addEventListener("input", tell);
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    details.open = false;
    summary.focus();
  });
  document.addEventListener("click", (event) => { if (!details.contains(event.target)) details.open = false; });
  tell();
  box.append(all, none, ...ticks.map(({ label }) => label));
  details.append(summary, box);
  const has = (name) => ticks.find(({ tick }) => tick.value === name)?.tick.checked ?? true;
  return { details, has };
};

// Rows of the tables by bit width and method.
(() => {
  const form = document.getElementById("rows-form");
  const rows = () => [...document.querySelectorAll("tr[data-method]")].filter((row) => !row.classList.contains("reference"));
  const found = rows();
  const widths = [...new Set(found.map((row) => row.dataset.bits))];
  const methods = [...new Set(found.map((row) => row.dataset.method))].sort();
  const { label, select: bits } = labelled("Bits", "bits", "all", widths);
  const picked = pickMethods(methods);
  const count = make("span");
  count.setAttribute("role", "status");
  form.append(make("strong", "Show rows"), label, picked.details, count);
  form.hidden = found.length < 8;
  // Intervals are drawn as wide as the rows that are left allow.
  const rescale = (table) => {
    const shown = [...table.querySelectorAll("tbody tr:not([hidden]) .interval")];
    const ends = (name) => shown.map((bar) => Number(bar.style.getPropertyValue(name)));
    const [low, high] = [Math.min(...ends("--lo")), Math.max(...ends("--hi"))];
    if (!(high > low)) return;
    table.style.setProperty("--from", low);
    table.style.setProperty("--span", high - low);
  };
  const filter = () => {
    for (const row of rows()) row.hidden = Boolean(bits.value) && row.dataset.bits !== bits.value || !picked.has(row.dataset.method);
    for (const table of document.querySelectorAll("table:has(.interval)")) rescale(table);
    const left = found.filter((row) => !row.hidden).length;
    count.textContent = left === found.length ? "" : `${left} of ${found.length} rows, and full precision`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  // A folded table is made when it is opened.
  for (const details of document.querySelectorAll("details.later")) {
    details.addEventListener("toggle", () => {
      const template = details.querySelector("template");
      if (!details.open || !template) return;
      template.replaceWith(template.content);
      makeSortable(details);
      filter();
    });
  }
})();

// One method of the plots stands out: picked from the list, or by a click on its marks or its name in a legend.
(() => {
  const form = document.getElementById("plots-form");
  if (!form) return;
  const plots = document.querySelector(".plots");
  const whole = new Set([...document.querySelectorAll("tr.reference")].map((row) => row.dataset.method));
  const parts = [...plots.querySelectorAll(".series")].filter((part) => !whole.has(part.dataset.series));
  const names = [...new Set(parts.map((part) => part.dataset.series))].sort();
  const { label, select } = labelled("Highlight", "method", "all methods", names);
  form.append(label);
  form.hidden = names.length < 2;
  if (form.hidden) return;
  plots.classList.add("has-script");
  const show = () => {
    for (const part of parts) part.classList.toggle("off", select.value !== "" && part.dataset.series !== select.value);
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  plots.addEventListener("click", (event) => {
    const name = event.target.closest(".series")?.dataset.series ?? "";
    select.value = name === select.value || whole.has(name) ? "" : name;
    show();
  });
})();
