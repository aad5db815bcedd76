// The choice of one of several characters: whose clips are shown, and for whom marks are drawn.

import { make } from "./dom.js";

export class Characters {
  // Calls `onChange` after another character was chosen.
  constructor(section, onChange) {
    this.group = section.querySelector(".characters");
    this.onChange = onChange;
    this.reset();
  }

  reset() {
    this.chosen = 0;
    this.drawn = null;
  }

  // `characters`: those who have clips. `place` is a character's place among the clips, `name` is text.
  draw(characters) {
    this.group.hidden = characters.length < 2;
    const drawn = JSON.stringify(characters);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const isGone = !characters.some(({ place }) => place === this.chosen);
    if (isGone) this.chosen = 0;
    this.group.replaceChildren(...characters.map((one) => this.radio(one)));
    if (isGone) this.onChange();
  }

  radio({ place, name }) {
    const input = make("input", { type: "radio", name: "character", checked: place === this.chosen });
    input.addEventListener("change", () => {
      this.chosen = place;
      this.onChange();
    });
    return make("label", {}, input, " ", make("span", { textContent: name }));
  }
}
