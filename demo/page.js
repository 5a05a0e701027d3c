// Draws the frames that the server sends (see demo/runner.py). Everything a model or a user wrote goes in as
// text, never as HTML; the charts are SVG that the server made from numbers.

const root = element.querySelector(".arena");

const STATUS = {
  waiting: ["…", "waiting"],
  running: ["✎", "writing"],
  stop: ["■", "finished"],
  length: ["…", "cut off"],
  pruned: ["✂", "pruned"],
  cancelled: ["⏹", "cancelled"],
};

function make(tag, css, text) {
  const node = document.createElement(tag);
  if (css) node.className = css;
  if (text !== undefined) node.textContent = text;
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function verdict(right) {
  return right === true ? " ✓ right" : right === false ? " ✗ wrong" : "";
}

function number(value) {
  return value.toLocaleString("en-US");
}

// --- one trace ---

function makeCard(sample) {
  const card = make("button", "card");
  card.type = "button";
  card.setAttribute("aria-expanded", "false");
  const parts = {
    name: make("span", "name", "#" + (sample + 1)),
    status: make("span", "status"),
    bar: make("span", "bar"),
    fill: make("span", "fill"),
    score: make("span", "score"),
    tokens: make("span", "tokens"),
    text: make("span", "text"),
    end: make("span", "end"),
  };
  const head = make("span", "row");
  head.append(parts.name, parts.status);
  parts.bar.append(parts.fill);
  const meter = make("span", "row");
  meter.append(parts.bar, parts.score);
  card.append(head, meter, parts.text, parts.tokens, parts.end);
  card.addEventListener("click", () => {
    const open = card.classList.toggle("open");
    card.setAttribute("aria-expanded", String(open));
  });
  return { card, parts, seen: "" };
}

function drawCard(view, trace) {
  const seen = JSON.stringify(trace);
  if (seen === view.seen) return;
  view.seen = seen;
  const { card, parts } = view;
  const [icon, word] = STATUS[trace.status];
  const graded = trace.status === "stop" && trace.right !== null;
  card.dataset.status = graded ? (trace.right ? "right" : "wrong") : trace.status;
  say(parts.status, graded ? verdict(trace.right).trim() : icon + " " + word);
  const score = trace.score === null ? "no score yet" : trace.score.toFixed(2);
  parts.fill.style.width = (trace.score || 0) * 100 + "%";
  say(parts.score, trace.score === null ? "–" : score);
  parts.score.title = "score of the quality head: " + score;
  say(parts.tokens, number(trace.tokens) + (trace.tokens === 1 ? " token" : " tokens"));
  say(parts.text, trace.text);
  say(parts.end, trace.answer !== null ? "answer " + trace.answer : trace.why);
}

// --- one run ---

function makeRun() {
  const section = make("section", "run");
  const view = {
    section,
    label: make("h3", "label"),
    meters: {},
    tally: make("div", "tally"),
    note: make("p", "note"),
    grid: make("div", "grid"),
    chart: make("figure", "scores"),
    request: make("details", "request"),
    cards: new Map(),
    seen: {},
  };
  const meters = make("dl", "meters");
  const names = { tokens: "tokens spent", saved: "tokens saved", seconds: "seconds", traces: "traces" };
  for (const [name, words] of Object.entries(names)) {
    const box = make("div");
    view.meters[name] = make("dd");
    box.append(view.meters[name], make("dt", "", words));
    box.dataset.meter = name;
    meters.append(box);
  }
  view.note.setAttribute("role", "status");
  view.request.append(make("summary", "", "The same answer from an app"), make("pre"));
  section.append(view.label, meters, view.tally, view.note, view.request, view.grid, view.chart);
  return view;
}

function drawRun(view, run) {
  view.section.dataset.phase = run.phase;
  say(view.label, run.label);
  const whole = run.tokens + run.saved;
  say(view.meters.tokens, number(run.tokens));
  say(view.meters.saved, run.saved ? number(run.saved) + " (" + Math.round((100 * run.saved) / whole) + "%)" : "–");
  say(view.meters.seconds, run.seconds === null ? "–" : run.seconds.toFixed(1));
  const counts = Object.entries(run.counts).filter(([, count]) => count);
  say(view.meters.traces, counts.map(([name, count]) => count + " " + name).join(", "));
  say(view.note, run.note);
  view.request.hidden = !run.request;
  say(view.request.lastChild, run.request);
  drawTally(view, run.tally);
  for (const trace of run.traces) {
    if (!view.cards.has(trace.sample)) {
      const made = makeCard(trace.sample);
      view.cards.set(trace.sample, made);
      view.grid.append(made.card);
    }
    drawCard(view.cards.get(trace.sample), trace);
  }
  if (view.seen.chart !== run.chart) {
    view.seen.chart = run.chart;
    view.chart.innerHTML = run.chart;
    view.chart.append(make("figcaption", "", "Score of the quality head along each trace: ○ right, ✕ wrong, | pruned."));
  }
}

function drawTally(view, tally) {
  const seen = JSON.stringify(tally);
  if (seen === view.seen.tally) return;
  view.seen.tally = seen;
  const boxes = tally.map((vote) => {
    const box = make("div", "vote");
    box.dataset.method = vote.method;
    const right = vote.right === null ? "" : vote.right ? "right" : "wrong";
    const title = make("h4", right);
    title.append(make("span", "method", vote.method), make("span", "answer", vote.answer + verdict(vote.right)));
    box.append(title);
    for (const row of vote.rows) {
      const line = make("div", "answer-row");
      const fill = make("span", "share " + (row.right === true ? "right" : row.right === false ? "wrong" : ""));
      fill.style.width = row.share * 100 + "%";
      const mark = row.right === true ? "\u00a0✓" : row.right === false ? "\u00a0✗" : "";
      const votes = row.votes + (row.votes === 1 ? " vote" : " votes");
      line.append(fill, make("span", "value", row.answer + mark));
      line.append(make("span", "weight", Math.round(row.share * 100) + "% · " + votes));
      box.append(line);
    }
    return box;
  });
  if (!boxes.length) boxes.push(make("p", "hint", "The votes appear here as the first traces finish."));
  view.tally.replaceChildren(...boxes);
}

// --- saving ---

function save(name, blob) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function saveTraces() {
  save("traces.jsonl", new Blob([await server.traces(arena.id)], { type: "application/jsonl" }));
}

async function savePicture() {
  const svg = await server.picture(arena.id);
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg);
  await image.decode();
  const canvas = make("canvas");
  canvas.width = image.width * 2;
  canvas.height = image.height * 2;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => save("traces.png", blob), "image/png");
}

async function copyLink(event) {
  const button = event.currentTarget;
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy it from the address bar";
  }
  setTimeout(() => (button.textContent = words), 3000);
}

// --- the arena ---

const arena = { id: "", views: [], key: "" };
const question = make("h2", "asked");
const tools = make("div", "tools");
for (const [words, action] of [
  ["Save traces", saveTraces],
  ["Save picture", savePicture],
  ["Copy link", copyLink],
]) {
  const button = make("button", "tool", words);
  button.type = "button";
  button.addEventListener("click", action);
  tools.append(button);
}
const runs = make("div", "runs");

const STEPS = [
  "① Many traces of your question are written side by side; a bar shows what the quality head thinks of each.",
  "② At the detection position the least promising are cut: ✂.",
  "③ The others finish and vote. The quality head's vote weighs each by its score; majority counts heads.",
];

function greet() {
  const steps = make("ol", "steps");
  steps.append(...STEPS.map((words) => make("li", "", words)));
  root.replaceChildren(steps);
}

function draw(frame) {
  if (frame.message) {
    const message = make("p", "message", frame.message);
    message.setAttribute("role", "alert");
    root.replaceChildren(message);
    arena.key = "";
    return;
  }
  if (!frame.runs.length) return greet();
  // Another question or other runs: start afresh.
  const key = JSON.stringify([frame.question, frame.runs.map((run) => [run.label, run.traces.length])]);
  if (key !== arena.key) {
    arena.key = key;
    arena.views = frame.runs.map(makeRun);
    runs.replaceChildren(...arena.views.map((view) => view.section));
    runs.dataset.runs = frame.runs.length;
    const reference = frame.runs[0].reference;
    question.replaceChildren(make("span", "", frame.question));
    if (reference !== null) question.append(make("small", "", "right answer " + reference));
    root.replaceChildren(question, tools, runs);
  }
  if (frame.link && frame.link !== location.search) history.replaceState(null, "", frame.link);
  arena.id = frame.id;
  tools.hidden = !frame.id;
  frame.runs.forEach((run, i) => drawRun(arena.views[i], run));
  root.dataset.update = frame.update;
  root.dataset.phase = frame.runs.map((run) => run.phase).join(" ");
}

watch("value", () => draw(props.value));
draw(props.value);
