// The people in a frame of the driving video, each a numbered button. One of them is followed.

import { make } from "./dom.js";

export class People {
  constructor(section, onChange) {
    this.frame = section.querySelector(".frame");
    this.picture = section.querySelector(".frame img");
    this.words = section.querySelector(".followed");
    this.onChange = onChange;
  }

  // `look.people`: number, box in fractions of the frame, and whether the clips follow the person.
  // `first`: the number of the person who was given the job's own picture, if several people have pictures.
  load(picture, look, first) {
    this.chosen = null;
    if (!picture || !look) return;
    const { people, source_width, source_height } = look;
    const proportions = source_width / source_height;
    this.picture.src = picture;
    this.picture.style.aspectRatio = proportions;
    this.frame.style.width = `min(100%, ${45 * proportions}vh)`;
    this.chosen = first ?? people.find(({ followed }) => followed)?.number ?? null;
    this.frame.querySelectorAll(".person").forEach((button) => button.remove());
    // Smaller people come later, because a click where boxes overlap reaches the last one.
    this.buttons = people.toSorted((one, other) => area(other) - area(one)).map((person) => this.button(person));
    this.picture.after(...this.buttons);
    this.draw();
  }

  button({ number, box: [x0, y0, x1, y1] }) {
    const button = make("button", { type: "button", className: "person" }, make("span", { textContent: number }));
    button.dataset.number = number;
    button.setAttribute("aria-label", `Person ${number}`);
    Object.assign(button.style, {
      left: percent(x0),
      top: percent(y0),
      width: percent(x1 - x0),
      height: percent(y1 - y0),
    });
    button.addEventListener("click", () => {
      if (number === this.chosen) return;
      this.chosen = number;
      this.draw();
      this.onChange();
    });
    return button;
  }

  draw() {
    for (const button of this.buttons) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.number) === this.chosen));
    }
    if (!this.buttons.length) this.words.textContent = "Nobody was found in this frame.";
    else if (this.chosen === null) this.words.textContent = "Nobody is followed: choose a person.";
    else if (this.buttons.length === 1) this.words.textContent = `Person ${this.chosen} is followed.`;
    else this.words.textContent = `Person ${this.chosen} is followed. Choose another one by its number.`;
  }
}

const area = ({ box: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
const percent = (fraction) => `${fraction * 100}%`;
