// Pictures for several people of the driving video: each of them becomes a character of their own.

import { make } from "./dom.js";

const KINDS = "image/*,.heic,.heif,.avif,.tif,.tiff";

export class Pictures {
  // Calls `onChange` after a picture was given or taken away.
  constructor(section, onChange) {
    this.list = section.querySelector(".pictures");
    this.onChange = onChange;
  }

  // Shows who has a picture. `look` is null if the job can have only one.
  load({ characters, links }, look) {
    const numbers = characters.map((person) => Number(/^index:(\d+)$/.exec(person)?.[1]));
    const shown = look?.people.length > 1 && numbers.every((number) => number > 0);
    this.list.hidden = !shown;
    this.people = shown ? look.people.map(({ number }) => number) : [];
    this.first = shown ? numbers[0] : undefined;
    this.given = characters;
    this.own = links.reference;
    // By the person's number: the path of a present picture, or a new file. The job's own picture is not among them.
    this.pictures = new Map(numbers.slice(1).map((number, index) => [number, `${links.reference}_${index + 2}`]));
  }

  // `first`: the number of the person who gets the job's own picture.
  draw(first) {
    this.first = first;
    this.list.replaceChildren(...this.people.map((number) => this.row(number)));
  }

  row(number) {
    const picture = number === this.first ? this.own : this.pictures.get(number);
    const row = make("li", {}, make("strong", { textContent: `Person ${number}` }));
    if (picture) row.append(thumbnail(picture, number));
    if (number === this.first) return row;
    const input = make("input", { type: "file", accept: KINDS });
    input.setAttribute("aria-label", `Picture for person ${number}`);
    input.addEventListener("change", () => this.change(number, input.files[0]));
    row.append(make("label", { className: "button quiet" }, picture ? "Another picture" : "Give a picture", input));
    if (picture) {
      const remove = make("button", { type: "button", className: "quiet", textContent: "Remove" });
      remove.setAttribute("aria-label", `Remove the picture of person ${number}`);
      remove.addEventListener("click", () => this.change(number, null));
      row.append(remove);
    }
    return row;
  }

  change(number, file) {
    if (file) this.pictures.set(number, file);
    else this.pictures.delete(number);
    this.onChange();
    this.list.querySelector(`[aria-label="Picture for person ${number}"]`)?.focus();
  }

  // The people who get pictures, as in `characters`; [] if only one person gets one.
  get characters() {
    const others = this.people.filter((number) => number !== this.first && this.pictures.has(number));
    if (!others.length && !this.given.length) return [];
    return [this.first, ...others].map((number) => `index:${number}`);
  }

  get changed() {
    const isNew = this.people.some((number) => number !== this.first && this.pictures.get(number) instanceof File);
    return isNew || JSON.stringify(this.characters) !== JSON.stringify(this.given);
  }

  // A form with the pictures; the job's own picture stays where it is.
  async form() {
    const data = new FormData();
    data.set("characters", JSON.stringify(this.characters));
    const others = this.characters.slice(1).map((person) => this.pictures.get(Number(person.split(":")[1])));
    for (const [index, picture] of others.entries()) {
      const file = picture instanceof File ? picture : await (await fetch(picture)).blob();
      data.set(`reference_${index + 2}`, file);
    }
    return data;
  }
}

function thumbnail(picture, number) {
  const image = make("img", { alt: `The picture for person ${number}` });
  image.src = picture instanceof File ? URL.createObjectURL(picture) : picture;
  const release = () => picture instanceof File && URL.revokeObjectURL(image.src);
  image.addEventListener("load", release);
  // Browsers cannot show every format that the server accepts.
  image.addEventListener("error", () => {
    release();
    image.replaceWith(picture.name ?? "");
  });
  return image;
}
