// The page of `xmodal serve`. Texts from the gallery only ever become text nodes, never markup.

import { $, drawLook, element } from "./look.js";

const state = { facts: null, token: sessionStorage.getItem("token") || "", turn: 0, query: "", open: null, asked: "", examples: null };

class Refused extends Error {}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (state.token) headers.authorization = `Bearer ${state.token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Refused("The service does not answer. Is it still running?");
  }
  if (response.status === 401) {
    $("gate").hidden = false;
    $("token").focus();
  }
  if (!response.ok) {
    const detail = await response.json().then((body) => body.detail, () => response.statusText);
    throw new Refused(response.status === 429 ? "The service is busy. Try again in a moment." : String(detail));
  }
  return response;
}

const post = (path, body) =>
  call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }).then((r) => r.json());

function say(message, error = "") {
  $("message").textContent = message;
  $("error").textContent = error;
  $("error").hidden = !error;
}

function quote(node, sentence) {
  node.replaceChildren(element("span", { className: "faint" }, "The model says: "), sentence || "");
  node.hidden = !sentence;
}

async function source(row) {
  const path = `/items/${row}/picture`;
  if (!state.token) return path;
  return URL.createObjectURL(await (await call(path)).blob()); // an <img> cannot send a token
}

async function fill(image, row, missing) {
  image.onerror = missing;
  try {
    image.src = await source(row);
  } catch {
    missing();
  }
}

// Ranked pictures

function blanks(count) {
  const card = () => element("li", { className: "blank", attributes: { "aria-hidden": "true" } },
    element("div", { className: "frame" }), element("div", { className: "under" }));
  $("hits").replaceChildren(...Array.from({ length: Math.min(count, 12) }, card));
  $("hits").setAttribute("aria-busy", "true");
}

function card(hit, index) {
  const frame = element("span", { className: "frame" });
  if (hit.picture) {
    const image = element("img", { alt: "", loading: "lazy" });
    frame.append(image);
    fill(image, hit.row, () => frame.replaceChildren("the picture’s file is missing"));
  } else frame.append(hit.id);
  const caption = hit.captions[0] || hit.id;
  const ranked = hit.score !== undefined;
  const under = element("span", { className: "under" });
  if (ranked) under.append(element("span", { className: "rank" }, element("span", {}, `${index + 1}`), element("span", {}, hit.score.toFixed(3))));
  under.append(element("span", { className: "caption" }, caption));
  const label = ranked ? `${index + 1}. ${caption}` : caption;
  const button = element("button", { className: "hit", type: "button", attributes: { "aria-label": label } }, frame, under);
  button.addEventListener("click", () => show(hit, state.query));
  return element("li", {}, button);
}

// What there is before anything has been asked: sentences that this gallery can answer, and some of its pictures.
async function offer(message = "") {
  const turn = ++state.turn;
  $("asked").hidden = true;
  state.query = "";
  say(message);
  try {
    state.examples ??= await (await call("/examples")).json();
    if (turn !== state.turn) return;
    const { sentences, images } = state.examples;
    if (sentences.length) $("text").placeholder = sentences[0];
    const choose = (sentence) => {
      const button = element("button", { className: "example", type: "button" }, sentence);
      button.addEventListener("click", () => {
        $("text").value = sentence;
        ask(sentence);
      });
      return button;
    };
    $("examples").replaceChildren(...(sentences.length ? ["Try ", ...sentences.map(choose)] : []));
    $("examples").hidden = !sentences.length;
    $("hits").replaceChildren(...images.map((image, index) => card(image, index)));
  } catch (error) {
    if (turn === state.turn) say("", error.message);
  }
}

// A question that goes into the address, so that the way back leads to the one before.
function ask(text) {
  const address = text.trim() ? `#q=${encodeURIComponent(text.trim())}` : "";
  if (address !== location.hash) history.pushState(null, "", address || location.pathname);
  return search(text);
}

// Show what `find(k)` gives, hits and a message, unless a newer question has been asked meanwhile.
async function rank(query, find) {
  const turn = ++state.turn;
  $("asked").hidden = $("examples").hidden = true;
  state.query = query;
  const k = Number($("k").value);
  say("Searching…");
  blanks(k);
  try {
    const [hits, message] = await find(k);
    if (turn !== state.turn) return;
    $("hits").replaceChildren(...hits.map(card));
    say(message);
  } catch (error) {
    if (turn !== state.turn) return;
    $("hits").replaceChildren();
    say("", error.message);
  } finally {
    if (turn === state.turn) $("hits").setAttribute("aria-busy", "false");
  }
}

async function search(text) {
  text = text.trim();
  if (!text) return offer("Write what the picture should show, or look at some of them.");
  return rank(text, async (k) => {
    const began = performance.now();
    const answer = await post("/search", { text, k });
    const long = answer.cut ? ` The sentence is too long: its last ${answer.cut} words were not read.` : "";
    const strange = (answer.unknown.length ? ` Not in the vocabulary: ${answer.unknown.join(", ")}.` : "") + long;
    const count = answer.hits.length;
    const cut = answer.scored < answer.of ? ` ${answer.scored.toLocaleString("en")} of ${answer.of.toLocaleString("en")} were scored in full, those that a coarse search puts first.` : "";
    const time = Math.round(performance.now() - began);
    return [answer.hits, count ? `${count} pictures in ${time} ms.${cut}${strange}` : `This gallery has no pictures.${strange}`];
  });
}

// Pictures like one of the gallery, whose row goes into the address.
function like(row) {
  history.pushState(null, "", `#like=${row}`);
  return alike(row);
}

function alike(row) {
  if ($("detail").open) $("detail").close();
  $("text").value = "";
  return rank("", async (k) => {
    const own = call(`/items/${row}`).then((r) => r.json());
    const [{ hits }, { id }] = await Promise.all([post("/search", { item: row, find: "images", k }), own]);
    return [hits, hits.length ? `${hits.length} pictures like ${id}, the most alike first.` : `There is no other picture than ${id}.`];
  });
}

// One picture

function captions(list, hits, pick) {
  const line = (hit, index) => {
    const button = element("button", { type: "button" }, hit.caption);
    button.addEventListener("click", () => pick(hit, button));
    return element("li", { className: hit.own ? "own" : "" }, element("span", { className: "number" }, `${index + 1}`), button,
      element("span", { className: "score" }, hit.score.toFixed(3)));
  };
  list.replaceChildren(...hits.map(line));
}

async function show(hit, query) {
  state.open = hit.row;
  $("detail-title").textContent = hit.id;
  $("boxes").replaceChildren();
  $("look").hidden = true;
  quote($("said"), hit.said);
  $("similar").hidden = !state.facts.similar;
  $("captions").replaceChildren();
  $("captions-note").textContent = "Ranking…";
  const image = $("picture");
  image.hidden = !hit.picture;
  $("stage").classList.toggle("sheet", !hit.picture);
  image.removeAttribute("src");
  const [height, width] = hit.size;
  image.style.aspectRatio = height && width ? `auto ${width} / ${height}` : ""; // its place is kept until it comes
  image.alt = hit.captions[0] ? `Picture: ${hit.captions[0]}` : "Picture";
  $("gone").hidden = true;
  const missing = () => {
    if (state.open !== hit.row) return;
    image.hidden = true;
    $("stage").classList.add("sheet");
    $("gone").hidden = false;
  };
  if (hit.picture) fill(image, hit.row, missing);
  if (!$("detail").open) $("detail").showModal();
  if (query) look(hit.row, query);
  try {
    const answer = await post("/search", { item: hit.row, k: 20 });
    if (state.open !== hit.row) return;
    captions($("captions"), answer.hits, (own, button) => {
      for (const other of $("captions").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
      look(hit.row, own.caption);
    });
    const own = answer.hits.filter((one) => one.own).length;
    $("captions-note").textContent = answer.hits.length
      ? `${own ? "Green: written for this picture. " : ""}${state.facts.attention ? `Choose one to see what ${state.facts.steps ? "each step looks" : "its words look"} at.` : ""}`
      : "This gallery has no captions.";
  } catch (error) {
    if (state.open === hit.row) $("captions-note").textContent = error.message;
  }
}

async function look(row, text) {
  if (!state.facts?.attention) return;
  try {
    const answer = await post("/attend", { item: row, text });
    if (state.open !== row) return;
    drawLook(answer);
  } catch (error) {
    $("look").hidden = false;
    $("words").replaceChildren();
    $("look-note").textContent = error.message;
  }
}

// A picture of one's own

async function give(file) {
  if (!file) return;
  const turn = ++state.turn;
  $("hits").replaceChildren();
  $("examples").hidden = true;
  if (file.size > 10_000_000) return say("", "This file is larger than 10 MB.");
  say(`Looking at ${file.name}…`);
  $("asked").hidden = true;
  const send = (path) =>
    call(path, { method: "POST", headers: { "content-type": file.type || "application/octet-stream" }, body: file }).then((r) => r.json());
  const speak = async () => (state.facts.speaks_of_images ? send("/caption/picture").catch(() => ({})) : {}); // ranks count more
  try {
    const near = async () => (state.facts.similar ? send(`/search/picture?find=images&k=${$("k").value}`) : { hits: [] });
    const [answer, said, similar] = await Promise.all([send("/search/picture?k=20"), speak(), near()]);
    if (turn !== state.turn) return;
    $("hits").replaceChildren(...similar.hits.map(card));
    quote($("asked-said"), said.caption);
    URL.revokeObjectURL(state.asked);
    state.asked = URL.createObjectURL(file);
    $("asked-picture").src = state.asked;
    captions($("asked-captions"), answer.hits, (own) => {
      $("text").value = own.caption;
      ask(own.caption);
    });
    $("asked").hidden = false;
    const below = similar.hits.length ? " Below: the pictures most like it." : "";
    say(`Captions of the gallery, best first. Choose one to search pictures with it.${below}`);
  } catch (error) {
    if (turn === state.turn) say("", error.message);
  }
}

// Wiring

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("text").value);
});
window.addEventListener("popstate", () => {
  if ($("detail").open) $("detail").close();
  $("text").value = questionOf();
  answer();
});
$("k").addEventListener("change", () => (questionOf() || likeOf() !== null) && answer());
$("similar").addEventListener("click", () => like(state.open));
$("close").addEventListener("click", () => $("detail").close());
$("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
$("detail").addEventListener("close", () => { state.open = null; });
$("file").addEventListener("change", (event) => give(event.target.files[0]));
$("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value;
  sessionStorage.setItem("token", state.token);
  $("gate").hidden = true;
  start();
});
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => {
  event.preventDefault();
  if (name === "drop" || !event.relatedTarget) $("drop").classList.remove("over");
  if (name === "drop" && state.facts?.pixels) give(event.dataTransfer.files[0]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName) && !$("detail").open) {
    event.preventDefault();
    $("text").focus();
    $("text").select();
  }
  const cards = [...document.querySelectorAll(".hit")];
  const here = cards.indexOf(document.activeElement);
  if (here < 0) return;
  const columns = getComputedStyle($("hits")).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (!step) return;
  event.preventDefault();
  cards[Math.min(Math.max(here + step, 0), cards.length - 1)].focus();
});

const questionOf = () => new URLSearchParams(location.hash.slice(1)).get("q") || "";
const likeOf = () => (/^#like=\d+$/.test(location.hash) ? Number(location.hash.slice(6)) : null);
const answer = () => (likeOf() !== null ? alike(likeOf()) : questionOf() ? search(questionOf()) : offer());

async function start() {
  try {
    state.facts = await (await call("/healthz")).json();
    const { data, system, images, captions: texts } = state.facts;
    $("facts").textContent = `${images.toLocaleString("en")} pictures and ${texts.toLocaleString("en")} captions of ${data}, ranked by ${system}`;
    $("drop").hidden = !state.facts.pixels;
    $("alike").hidden = !state.facts.similar;
    $("text").value = questionOf() || $("text").value;
    answer();
    if (!location.hash && matchMedia("(pointer: fine)").matches) $("text").focus();
  } catch (error) {
    $("facts").textContent = "";
    say("", error.message);
  }
}

start();
