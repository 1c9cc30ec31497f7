// What words or steps look at, drawn over the picture; and what the page finds and makes elements with.

const SHOWN = 8; // regions of a word that are outlined

export const $ = (id) => document.getElementById(id);

export function element(tag, options = {}, ...children) {
  const { className, attributes = {}, ...rest } = options;
  const node = Object.assign(document.createElement(tag), rest);
  if (className) node.className = className;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// 0 where a region gets no more than even attention over all would give it, 1 where it gets all: the same scale for
// every word, so that a word that looks nowhere in particular is drawn so.
function strengthOf(weight, count) {
  return count > 1 ? Math.max(0, 1 + Math.log(Math.max(weight, 1e-9)) / Math.log(count)) : 1;
}

const percent = (share) => `${share < 0.0995 ? (100 * share).toFixed(1) : Math.round(100 * share)} %`;

function draw(boxes, weights) {
  const svg = $("boxes");
  const make = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const order = weights.map((weight, index) => [weight, index]).sort((a, b) => b[0] - a[0]).slice(0, SHOWN);
  const place = ([x1, y1, x2, y2]) => ({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 });
  const mask = make("mask", { id: "clear" });
  mask.append(make("rect", { x: 0, y: 0, width: 1, height: 1, fill: "white" }));
  const outlines = [];
  for (const [weight, index] of order.reverse()) {
    const strength = strengthOf(weight, boxes.length);
    if (strength < 0.02) continue;
    mask.append(make("rect", { ...place(boxes[index]), fill: "black", "fill-opacity": strength }));
    outlines.push(make("rect", { ...place(boxes[index]), class: "outline", "stroke-width": 1 + 2 * strength, "stroke-opacity": 0.25 + 0.75 * strength }));
  }
  const fog = make("rect", { x: 0, y: 0, width: 1, height: 1, class: "fog", "fill-opacity": 0.62, mask: "url(#clear)" });
  svg.replaceChildren(mask, fog, ...outlines);
}

// Words to choose from, or the system's steps, each with the words of the sentence that it looks at beside it.
export function drawLook({ words, boxes, weights, steps, unknown, uniform, score }) {
  const strange = (word) => (unknown.includes(word) ? { className: "word strange", title: "not in the vocabulary" } : { className: "word" });
  const even = boxes.length > 1 ? `; spread evenly, each of the ${boxes.length} would get ${percent(uniform)}` : "";
  const button = (name, index) => {
    const made = element("button", { ...strange(name), type: "button", attributes: { "aria-pressed": "false" } }, name);
    const choose = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === made));
      draw(boxes, weights[index]);
      const top = Math.max(0, ...weights[index]);
      $("look-note").textContent = `${steps ? name : `“${name}”`} gives ${percent(top)} of its attention to its first region${even}.${read(index)}`;
    };
    for (const event of ["mouseenter", "focus", "click"]) made.addEventListener(event, choose);
    return made;
  };
  const read = (step) => {
    if (!steps || !words.length) return "";
    const top = Math.max(...steps[step]);
    return ` Of its attention to the sentence “${words[steps[step].indexOf(top)]}” gets the most, ${percent(top)}.`;
  };
  const shaded = (share, index) => {
    const word = element("span", strange(words[index]), words[index]);
    word.style.setProperty("--share", strengthOf(share, words.length + 2)); // its start and end are looked at too
    return word;
  };
  const buttons = (steps ? steps.map((_, index) => `Step ${index + 1}`) : words).map(button);
  const row = (made, index) => element("span", { className: "words step" }, made, ...steps[index].map(shaded));
  $("look-title").textContent = `What each ${steps ? "step" : "word"} looks at`;
  $("words").replaceChildren(...(steps ? buttons.map(row) : buttons));
  $("boxes").replaceChildren();
  $("look-note").textContent = `Score ${score.toFixed(3)}. Point at a ${steps ? "step" : "word"}, or reach it with Tab.`;
  $("look").hidden = false;
}
