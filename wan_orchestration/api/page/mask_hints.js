// Marks for the mask, drawn on a frame: boxes and points, as in `preprocess.mask_hints`: box:0.1,0.2,0.5,0.9@1.2
// Numbers are fractions of the frame's sides, or px if one is above 1. The second after @ says when it was drawn.

import { make, showText } from "./dom.js";

const STEP = 0.02;
const SMALLEST_BOX = 0.01;
const SAME_MOMENT = 0.05;
const HELP = {
  box: "Drag a box: the mask stays inside. By keyboard: arrow keys move the cross, Enter sets a corner.",
  point: "Click on parts that the mask should hold. By keyboard: arrow keys move the cross, Enter sets a point.",
  not: "Click on parts that the mask should leave out. By keyboard: arrow keys move the cross, Enter sets a point.",
};

export class MaskHints {
  constructor(section, onChange) {
    this.section = section;
    this.onChange = onChange;
    this.all = new Map();
    this.find = (selector) => section.querySelector(selector);
    this.layer = this.find(".layer");
    this.cross = this.find(".cross");
    this.find(".tools").addEventListener("change", () => this.chooseTool());
    this.find(".undo-hint").addEventListener("click", () => this.set(this.hints.slice(0, -1)));
    this.layer.addEventListener("pointerdown", (event) => this.pressed(event));
    this.layer.addEventListener("keydown", (event) => this.typed(event));
    this.layer.addEventListener("blur", () => this.dropCorner());
  }

  // `hints` are the marks for each person, who are named as in `characters`. `look` says what the frame shows. It is
  // null if no marks can be drawn.
  load(hints, look) {
    this.look = look;
    this.find(".tools").hidden = !look;
    for (const name of [".undo-hint", ".others"]) this.find(name).hidden = true;
    this.find("[name=tool][value=person]").checked = true;
    this.all = hints;
    this.place = [0.5, 0.5];
    this.chooseTool();
  }

  // Shows the marks for a person. `whose` says in words for whom they are, if that is not clear.
  show(person, whose) {
    Object.assign(this, { person, whose });
    this.showHelp();
    this.dropCorner();
  }

  of(person) {
    return this.all.get(person) ?? [];
  }

  get hints() {
    return this.of(this.person);
  }

  set(hints) {
    this.all.set(this.person, hints);
    this.draw();
    this.onChange();
  }

  get tool() {
    return this.section.querySelector("[name=tool]:checked").value;
  }

  chooseTool() {
    this.layer.hidden = this.tool === "person";
    this.showHelp();
    this.dropCorner();
  }

  showHelp() {
    const help = this.tool === "person" ? "" : [HELP[this.tool], this.whose].filter(Boolean).join(" ");
    this.find(".help").textContent = help;
    this.layer.setAttribute("aria-label", `Frame of the video. ${help}`);
  }

  pressed(event) {
    if (this.section.disabled || event.button) return;
    event.preventDefault();
    this.layer.focus({ preventScroll: true });
    this.dropCorner();
    this.place = this.at(event);
    this.mark();
    if (this.tool !== "box") return;
    this.layer.setPointerCapture(event.pointerId);
    const drag = (moved) => {
      this.place = this.at(moved);
      this.draw();
    };
    this.layer.addEventListener("pointermove", drag);
    this.layer.addEventListener(
      "lostpointercapture",
      () => {
        this.layer.removeEventListener("pointermove", drag);
        if (this.corner) this.mark();
      },
      { once: true },
    );
  }

  typed(event) {
    const step = event.shiftKey ? 5 * STEP : STEP;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (this.section.disabled) return;
    if (event.key in moves) this.place = this.place.map((value, axis) => inside(value + moves[event.key][axis]));
    else if (event.key === "Enter" || event.key === " ") this.mark();
    else if (event.key === "Escape") this.dropCorner();
    else return;
    event.preventDefault();
    this.draw();
  }

  // Sets a point or a corner at the cross; the second corner makes a box.
  mark() {
    const [x, y] = this.place;
    const moment = `@${Number(this.look.people_seconds.toFixed(3))}`;
    if (this.tool !== "box") return this.set([...this.hints, `${this.tool}:${written([x, y])}${moment}`]);
    if (!this.corner) {
      this.corner = this.place;
      return this.draw();
    }
    const box = boxBetween(this.corner, this.place);
    this.corner = null;
    if (box[2] - box[0] < SMALLEST_BOX || box[3] - box[1] < SMALLEST_BOX) return this.draw();
    this.set([...this.hints, `box:${written(box)}${moment}`]);
  }

  dropCorner() {
    this.corner = null;
    this.draw();
  }

  at({ clientX, clientY }) {
    const { left, top, width, height } = this.layer.getBoundingClientRect();
    return [inside((clientX - left) / width), inside((clientY - top) / height)];
  }

  draw() {
    if (!this.look) return this.find(".marks").replaceChildren();
    const { people_seconds: moment, source_width, source_height } = this.look;
    const sides = [source_width, source_height];
    const hints = this.hints.map(read);
    const shown = hints.filter(({ second }) => Math.abs((second ?? moment) - moment) < SAME_MOMENT);
    const marks = shown.map(({ kind, numbers }) => {
      const inPixels = numbers.some((number) => number > 1);
      return drawn(kind, inPixels ? numbers.map((number, axis) => number / sides[axis % 2]) : numbers);
    });
    if (this.corner) marks.push(drawn("box", boxBetween(this.corner, this.place)));
    this.find(".marks").replaceChildren(...marks);
    const [x, y] = this.place;
    Object.assign(this.cross.style, { left: percent(x), top: percent(y) });
    const others = hints.length - shown.length;
    showText(this.find(".others"), others ? `Marks at other moments: ${others}` : "");
    this.find(".undo-hint").hidden = !hints.length;
  }
}

function read(hint) {
  const [kind, numbers, second] = hint.split(/[:@]/);
  return { kind, numbers: numbers.split(",").map(Number), second: second === undefined ? null : Number(second) };
}

function drawn(kind, [x0, y0, x1, y1]) {
  const mark = make("span", { className: `mark ${kind}` });
  Object.assign(mark.style, { left: percent(x0), top: percent(y0) });
  if (kind === "box") Object.assign(mark.style, { width: percent(x1 - x0), height: percent(y1 - y0) });
  return mark;
}

const boxBetween = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
const inside = (fraction) => Math.min(Math.max(fraction, 0), 1);
const percent = (fraction) => `${fraction * 100}%`;
const written = (numbers) => numbers.map((number) => Number(number.toFixed(4))).join(",");
