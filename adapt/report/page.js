"use strict";
// The page works without this file, but for filtering, sorting, the browser of questions and the confusion of answers.

const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "style") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Light and dark: as the system has it, until the switch says otherwise.
function setUpTheme(button) {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const show = () => { button.textContent = dark() ? "☀ light" : "☾ dark"; };
  try { if (localStorage.taliktheme) root.dataset.theme = localStorage.taliktheme; } catch { /* a file may have none */ }
  button.onclick = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.taliktheme = root.dataset.theme; } catch { /* kept for this view alone */ }
    show();
  };
  show();
}

// What SVG titles and title attributes say, at once and beside the pointer.
function setUpHints() {
  const box = element("div", { className: "hint", hidden: true, role: "tooltip" });
  document.body.append(box);
  for (const title of all("svg g > title")) {
    title.parentNode.dataset.hint = title.textContent;
    title.remove();
  }
  for (const titled of all("main [title]")) {
    titled.dataset.hint = titled.title;
    titled.removeAttribute("title");
  }
  const move = (event) => {
    const of = event.target.closest?.("[data-hint]");
    box.hidden = !of;
    if (!of) return;
    box.textContent = of.dataset.hint;
    const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
    box.style.left = `${Math.max(4, left)}px`;
    const below = event.clientY + 18 + box.offsetHeight < innerHeight;
    box.style.top = `${below ? event.clientY + 18 : event.clientY - 10 - box.offsetHeight}px`;
  };
  addEventListener("pointermove", move);
  addEventListener("pointerdown", move);
  addEventListener("scroll", () => { box.hidden = true; }, true);
}

// Rows of all tables and lines of all figures belong to a variant by data-row.
function setUpFilter(input, count) {
  const rows = all("tr[data-row]");
  const filter = () => {
    const wanted = input.value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
    const hidden = new Set();
    for (const row of rows) {
      const text = `${row.dataset.row} ${row.cells[0].textContent}`.toLowerCase();
      row.hidden = wanted.length > 0 && !wanted.some((word) => text.includes(word));
      if (row.hidden) hidden.add(row.dataset.row);
    }
    for (const drawn of all("svg [data-row]")) drawn.classList.toggle("dimmed", hidden.has(drawn.dataset.row));
    const shown = all("table.sortable tbody tr").filter((row) => !row.hidden).length;
    count.textContent = wanted.length ? `${shown} shown` : "";
  };
  input.oninput = filter;
  const mark = (name) => {
    for (const drawn of all("svg [data-row]")) drawn.classList.toggle("dimmed", name !== null && drawn.dataset.row !== name);
    if (name === null) filter();
  };
  for (const row of rows) {
    row.onmouseenter = () => mark(row.dataset.row);
    row.onmouseleave = () => mark(null);
  }
}

const UNITS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
function numberIn(cell) {
  const given = cell.dataset.value ?? cell.textContent;
  const found = given.replace(/−/g, "-").replace(/,/g, "").match(/^\s*<?([+-]?[\d.]+(?:e[+-]?\d+)?)\s*([kMGT])?/);
  return found ? Number(found[1]) * (UNITS[found[2]] || 1) : null;
}

// A click on a head sorts, a second one turns the order round, a third one goes back to the file's order.
function setUpSorting(table) {
  const body = table.tBodies[0], original = [...body.rows];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, index) => {
    head.tabIndex = 0;
    head.dataset.hint = "sort by this column";
    const sort = () => {
      const next = { descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort")] || "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const value = (row) => numberIn(row.cells[index]);
      const sorted = next === "none" ? original : [...original].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) {
          return x === y ? sign * a.cells[index].textContent.localeCompare(b.cells[index].textContent) : x === null ? 1 : -1;
        }
        return sign * (x - y);
      });
      body.append(...sorted);
    };
    head.onclick = sort;
    head.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } };
  });
}

async function readData(holder) {
  const bytes = Uint8Array.from(atob(holder.textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// The right answers of a question: one, or several.
const rightAnswers = (data, q) => data.questions.right[q] || [data.questions.answer[q]];

// One question: the clip, what was asked, what each variant answered, what its gates let pass.
function shownQuestion(data, q) {
  const clip = data.clips[data.questions.clip[q]], answer = data.questions.answer[q];
  const unseen = data.unseen.includes(answer) ? " (in no training question)" : "";
  const accepted = rightAnswers(data, q), several = accepted.length > 1;
  const player = shownMedia(clip);
  const rows = data.rows.map((row, r) => {
    const given = data.given[r][q], probability = data.probability[r][q], right = data.right[r][q];
    const seeds = row.seeds > 1 ? `${right} of ${row.seeds} seeds right` : "";
    const dot = element("span", { className: row.trained ? "dot" : "dot blind", style: row.trained ? `background:${row.colour}` : "" });
    return element("tr", {},
      element("th", { scope: "row" }, dot, row.label),
      element("td", { className: `left ${accepted.includes(given) ? "right" : "wrong"}` }, data.answers[given]),
      element("td", {}, probability < 0 ? "" : (probability / 100).toFixed(2)), element("td", {}, seeds));
  });
  const heads = ["variant", "answer", "probability", ""].map((text) => element("th", {}, text));
  heads[0].className = heads[1].className = "left first";
  return element("article", {},
    element("h3", {}, data.questions.text[q] || "(no words)"),
    element("p", { className: "caption" }, `${data.types[data.questions.type[q]]} · clip ${clip.id} · question ${data.questions.id[q]}`),
    element("p", {}, several ? "Right answers: " : "True answer: ", element("b", {}, accepted.map((one) => data.answers[one]).join(" · ")), unseen),
    player,
    ...(data.gates[q] || []).map((gates) => shownGates(data, gates, player)),
    element("div", { className: "scroll" },
      element("table", { className: "answers" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows))));
}

function shownMedia(clip) {
  if (!clip.media) return element("p", { className: "media caption" }, "The clip is not where the data set was read: no media to play.");
  const player = element(clip.kind, { controls: true, preload: "metadata", src: clip.media });
  const holder = element("div", { className: "media" }, player);
  player.onerror = () => {
    const why = `${decodeURI(clip.media)} cannot be played here: moved since, or of a kind that this browser does not know.`;
    holder.replaceChildren(element("p", { className: "caption" }, why));
  };
  return holder;
}

function played(player) {
  const [, start, end] = /#t=([\d.]+),?([\d.]*)$/.exec(player.src) || [];
  const begin = Number(start || 0);
  return { begin, seconds: (end ? Number(end) : player.duration) - begin };
}

function shownGates(data, gates, holder) {
  const values = [...Object.values(gates.segments).flat(), ...gates.words.map((pair) => pair[1])];
  const reach = Math.max(0.05, ...values.map((value) => Math.abs(value - 1)));
  const shade = (value) => {
    const strength = (60 * Math.min(1, Math.abs(value - 1) / reach)).toFixed(1);
    return `background: color-mix(in srgb, var(--${value >= 1 ? "accent" : "bad"}) ${strength}%, transparent)`;
  };
  const player = find("video, audio", holder);
  const lines = Object.entries(gates.segments).map(([modality, line]) => element("tr", {},
    element("th", { scope: "row" }, modality),
    ...line.map((value, t) => {
      const cell = element("td", { style: shade(value), "data-hint": `${modality}, segment ${t + 1}: ${value.toFixed(2)}` }, value.toFixed(2));
      cell.onclick = () => {
        if (!player?.duration) return;
        const { begin, seconds } = played(player);
        player.currentTime = begin + (t / line.length) * seconds;
      };
      return cell;
    })));
  const now = () => lines.forEach((line) => {
    const { begin, seconds } = played(player);
    const cells = [...line.cells].slice(1), at = Math.floor(((player.currentTime - begin) / seconds) * cells.length);
    cells.forEach((cell, t) => cell.classList.toggle("now", t === at));
  });
  if (player) player.ontimeupdate = now;
  const words = gates.words.map(([word, value]) => element("span", { style: shade(value) }, word, element("small", {}, value.toFixed(2))));
  const insertion = `${data.rows[gates.row].label}: gates of insertion ${gates.insertion + 1} (1 lets pass, 0 suppresses)`;
  return element("div", {},
    element("p", { className: "caption" }, insertion),
    element("div", { className: "scroll" }, element("table", { className: "gates" }, element("tbody", {}, ...lines))),
    element("div", { className: "words" }, ...words));
}

const A_PAGE = 25;
function setUpQuestions(section, data) {
  const list = find(".list", section), shown = find(".one", section), pager = find(".pager", section);
  const { type, outcome, row, text } = Object.fromEntries(all("select, input", section).map((input) => [input.name, input]));
  type.append(...data.types.map((name, index) => element("option", { value: index }, name)));
  row.append(...data.rows.map((one, index) => element("option", { value: index }, one.label)));
  row.value = data.rows.findIndex((one) => one.trained);
  let found = [], page = 0;
  const right = (r, q) => rightAnswers(data, q).includes(data.given[r][q]);
  const trained = data.rows.map((one, index) => index).filter((index) => data.rows[index].trained);
  const tests = {
    all: () => true,
    wrong: (q) => !right(Number(row.value), q),
    right: (q) => right(Number(row.value), q),
    gates: (q) => q in data.gates,
    differ: (q) => trained.some((r) => right(r, q)) && trained.some((r) => !right(r, q)),
    nobody: (q) => !trained.some((r) => right(r, q)),
    unseen: (q) => data.unseen.includes(data.questions.answer[q]),
  };
  const open = (q) => {
    all("button", list).forEach((button) => button.setAttribute("aria-pressed", Number(button.value) === q));
    shown.replaceChildren(shownQuestion(data, q));
  };
  const turn = (to) => {
    page = Math.max(0, Math.min(to, Math.ceil(found.length / A_PAGE) - 1));
    const here = found.slice(page * A_PAGE, (page + 1) * A_PAGE);
    list.replaceChildren(...here.map((q) => {
      const mark = right(Number(row.value), q) ? "right" : "wrong";
      const words = [data.questions.text[q] || data.clips[data.questions.clip[q]].id, element("small", {}, data.types[data.questions.type[q]])];
      const button = element("button", { value: q, className: mark }, ...words);
      button.onclick = () => open(q);
      return button;
    }));
    const [first, last] = [found.length ? page * A_PAGE + 1 : 0, page * A_PAGE + here.length];
    find("span", pager).textContent = `${first}–${last} of ${found.length}`;
    if (here.length) open(here[0]);
    else shown.replaceChildren(element("p", { className: "caption" }, "No question is so."));
  };
  const search = () => {
    const words = text.value.toLowerCase();
    found = data.questions.id.map((_, q) => q).filter((q) => (type.value === "" || data.questions.type[q] === Number(type.value))
      && tests[outcome.value](q)
      && (!words || `${data.questions.text[q]} ${data.clips[data.questions.clip[q]].id} ${data.answers[data.questions.answer[q]]}`.toLowerCase().includes(words)));
    turn(0);
  };
  [type, outcome, row, text].forEach((input) => { input.oninput = search; });
  const [back, on] = all("button", pager);
  back.onclick = () => turn(page - 1);
  on.onclick = () => turn(page + 1);
  search();
}

const MOST_ANSWERS = 16;
function setUpConfusion(section, data) {
  const choice = find("select", section), place = find(".scroll", section);
  data.rows.forEach((row, index) => { if (row.trained) choice.append(element("option", { value: index }, row.label)); });
  const show = () => {
    const counts = data.confusion[Number(choice.value)], totals = new Map();
    for (const [truth, given, count] of counts) {
      totals.set(truth, (totals.get(truth) || 0) + count);
      if (!totals.has(given)) totals.set(given, 0);
    }
    const ordered = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
    const kept = ordered.slice(0, MOST_ANSWERS), others = ordered.length > kept.length;
    const index = new Map(kept.map((answer, i) => [answer, i])), size = kept.length + (others ? 1 : 0);
    const cells = Array.from({ length: size }, () => new Array(size).fill(0));
    const at = (answer) => index.get(answer) ?? kept.length;
    for (const [truth, given, count] of counts) cells[at(truth)][at(given)] += count;
    const names = [...kept.map((answer) => data.answers[answer]), ...(others ? ["(others)"] : [])];
    const head = element("tr", {}, element("th", { className: "left" }, "true ↓ given →"),
      ...names.map((name) => element("th", {}, element("span", {}, name))), element("th", {}, "all"));
    const body = cells.map((line, i) => {
      const sum = line.reduce((a, b) => a + b, 0);
      return element("tr", {}, element("th", { scope: "row" }, names[i]), ...line.map((count, j) => {
        const share = sum ? count / sum : 0, tone = i === j ? "good" : "bad";
        const style = `background: color-mix(in srgb, var(--${tone}) ${(70 * share).toFixed(0)}%, transparent)`;
        return element("td", { style, "data-hint": `true ${names[i]}, given ${names[j]}: ${count} of ${sum}` }, count ? String(count) : "");
      }), element("td", { className: "average" }, String(sum)));
    });
    place.replaceChildren(element("table", { className: "confusion" }, element("thead", {}, head), element("tbody", {}, ...body)));
  };
  choice.oninput = show;
  show();
}

async function main() {
  document.documentElement.classList.add("scripted");
  setUpTheme(find("#theme"));
  setUpHints();
  setUpFilter(find("#filter"), find("#filtered"));
  all("table.sortable").forEach(setUpSorting);
  const data = await readData(find("#data"));
  setUpQuestions(find("#questions"), data);
  setUpConfusion(find("#confusion"), data);
  document.documentElement.dataset.ready = "yes";
}
main();
