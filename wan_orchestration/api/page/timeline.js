// Start and end of the part that is used, as two handles on a row of small pictures.

import { clock } from "./times.js";

const PICTURES = 16;
const SHORTEST = 0.2;
const STEP = 0.1;
const LARGE_STEP = 1;

export class Timeline {
  // Calls `onChange` with the moment (s) of the handle that was moved.
  constructor(section, onChange) {
    this.section = section;
    this.onChange = onChange;
    this.strip = section.querySelector(".strip");
    this.canvas = section.querySelector("canvas");
    this.pictures = new Image();
    this.pictures.addEventListener("load", () => this.drawPictures());
    new ResizeObserver(() => this.drawPictures()).observe(this.canvas);
    this.line = section.querySelector(".playhead");
    this.handles = { start: section.querySelector(".start"), end: section.querySelector(".end") };
    for (const name of ["start", "end"]) {
      this.handles[name].addEventListener("keydown", (event) => this.pressed(event, name));
      this.handles[name].addEventListener("pointerdown", (event) => this.grabbed(event, name));
    }
  }

  // `pictures`: path of the row of pictures. Times are in seconds of the driving video, which lasts `seconds`.
  load({ pictures, seconds, start, end }) {
    if (pictures) this.pictures.src = pictures;
    this.seconds = seconds;
    this.start = start;
    this.end = Math.min(end ?? seconds, seconds);
    this.draw();
  }

  showPlayhead(seconds) {
    this.line.style.left = this.percent(seconds);
  }

  // Moves a handle; the other one stays where it is.
  move(name, seconds) {
    const [low, high] = name === "start" ? [0, this.end - SHORTEST] : [this.start + SHORTEST, this.seconds];
    const moved = Math.min(Math.max(Math.round(seconds * 100) / 100, low), high);
    this[name] = Math.round(moved * 1000) / 1000;
    this.draw();
    this.onChange(this[name]);
  }

  pressed(event, name) {
    const step = event.shiftKey ? LARGE_STEP : STEP;
    const targets = {
      ArrowLeft: this[name] - step,
      ArrowDown: this[name] - step,
      ArrowRight: this[name] + step,
      ArrowUp: this[name] + step,
      PageDown: this[name] - LARGE_STEP,
      PageUp: this[name] + LARGE_STEP,
      Home: 0,
      End: this.seconds,
    };
    if (!(event.key in targets) || this.section.disabled) return;
    event.preventDefault();
    this.move(name, targets[event.key]);
  }

  grabbed(event, name) {
    if (this.section.disabled || event.button) return;
    event.preventDefault();
    const handle = this.handles[name];
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    const { left, width } = this.strip.getBoundingClientRect();
    const offset = event.clientX - left - (this[name] / this.seconds) * width;
    const drag = ({ clientX }) => this.move(name, ((clientX - left - offset) / width) * this.seconds);
    handle.addEventListener("pointermove", drag);
    handle.addEventListener("lostpointercapture", () => handle.removeEventListener("pointermove", drag), { once: true });
  }

  draw() {
    for (const [name, handle] of Object.entries(this.handles)) {
      handle.style.left = this.percent(this[name]);
      handle.setAttribute("aria-valuemin", "0");
      handle.setAttribute("aria-valuemax", this.seconds);
      handle.setAttribute("aria-valuenow", this[name]);
      handle.setAttribute("aria-valuetext", `${clock(this[name])} of ${clock(this.seconds)}`);
    }
    this.strip.querySelector(".before").style.width = this.percent(this.start);
    this.strip.querySelector(".after").style.left = this.percent(this.end);
    this.section.querySelector(".chosen").textContent =
      `${clock(this.start)} to ${clock(this.end)}, ${(this.end - this.start).toFixed(1)} s`;
  }

  // Draws as many of the pictures as fit side by side, each cut to its cell.
  drawPictures() {
    const { naturalWidth, naturalHeight: height } = this.pictures;
    if (!height) return;
    const scale = devicePixelRatio;
    this.canvas.width = this.canvas.clientWidth * scale;
    this.canvas.height = this.canvas.clientHeight * scale;
    const width = naturalWidth / PICTURES;
    const fitting = (this.canvas.width / this.canvas.height) * (height / width);
    const cells = Math.min(Math.max(Math.round(fitting), 1), PICTURES);
    const cellWidth = this.canvas.width / cells;
    const zoom = Math.max(cellWidth / width, this.canvas.height / height);
    const [cutWidth, cutHeight] = [cellWidth / zoom, this.canvas.height / zoom];
    const context = this.canvas.getContext("2d");
    for (let cell = 0; cell < cells; cell++) {
      const picture = Math.floor(((cell + 0.5) / cells) * PICTURES);
      const [x, y] = [picture * width + (width - cutWidth) / 2, (height - cutHeight) / 2];
      context.drawImage(this.pictures, x, y, cutWidth, cutHeight, cell * cellWidth, 0, cellWidth, this.canvas.height);
    }
  }

  percent(seconds) {
    return `${Math.min(Math.max(seconds / this.seconds, 0), 1) * 100}%`;
  }
}
