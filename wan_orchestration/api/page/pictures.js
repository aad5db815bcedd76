// Pictures for several people of the driving video: each of them becomes a character of their own.

import { make } from "./dom.js";
import { download } from "./http.js";

const KINDS = "image/*,.heic,.heif,.avif,.tif,.tiff";

// The path of a character's picture. The first character has the job's own picture.
export const pictureOf = ({ links, run_id }, place) =>
  place ? `${links.reference}_${place + 1}?v=${run_id}` : links.reference;

export class Pictures {
  // Calls `onChange` after the user gave a picture or took one away.
  constructor(section, onChange) {
    this.list = section.querySelector(".pictures");
    this.onChange = onChange;
  }

  // Shows who has a picture. `look` is null if the job can have only one.
  //
  // A character is {person, number, picture, place}: the choice of a person as in `characters`, this person's number if
  // it is known, a path or a new file, and the place in `characters`, which new characters do not have.
  load(job, look) {
    this.people = look?.people ?? [];
    this.given = (look ? job.characters : []).map((person, place) => ({
      person,
      number: numberOf(person),
      picture: pictureOf(job, place),
      place,
    }));
    const numbers = new Set(this.given.map(({ number }) => number));
    const followed = this.people.filter((one) => one.followed && !numbers.has(one.number));
    const unnumbered = this.given.filter(({ number }) => !number);
    // The person whom a box or a point means, if only one person can be meant.
    if (unnumbered.length === 1 && followed.length === 1) unnumbered[0].number = followed[0].number;
    const only = { ...this.who(followed[0]?.number), picture: pictureOf(job, 0), place: 0 };
    this.characters = this.given.length ? this.given : [only];
  }

  // The number of the person who has the job's own picture, if it is known.
  get first() {
    return this.characters[0].number;
  }

  // Gives the job's own picture to a person. If this person had one, the two people swap their pictures.
  choose(number) {
    const [first] = this.characters;
    const chosen = this.who(number);
    this.characters = this.characters.map((one) => {
      if (one === first) return { ...one, ...chosen };
      return one.person === chosen.person ? { ...one, person: first.person, number: first.number } : one;
    });
  }

  // Everybody whom the frame shows, then the characters whom it does not show.
  draw() {
    const find = (number) => this.characters.find((one) => one.number === number);
    const shown = this.people.map(({ number }) => find(number) ?? this.who(number));
    const rows = [...shown, ...this.characters.filter((one) => !shown.includes(one))];
    this.list.hidden = rows.length < 2 || !this.characters[0].person;
    this.list.replaceChildren(...(this.list.hidden ? [] : rows.map((one) => this.row(one))));
  }

  row(one) {
    const { person, number, picture } = one;
    const name = number ? `person ${number}` : person;
    const row = make("li", {}, make("strong", { textContent: number ? `Person ${number}` : person }));
    if (picture) row.append(thumbnail(picture, name));
    if (one === this.characters[0]) return row;
    const input = make("input", { type: "file", accept: KINDS });
    input.setAttribute("aria-label", `Picture for ${name}`);
    input.addEventListener("change", () => this.change(one, name, input.files[0]));
    row.append(make("label", { className: "button quiet" }, picture ? "Another picture" : "Give a picture", input));
    if (picture) {
      const remove = make("button", { type: "button", className: "quiet", textContent: "Remove" });
      remove.setAttribute("aria-label", `Remove the picture of ${name}`);
      remove.addEventListener("click", () => this.change(one, name, null));
      row.append(remove);
    }
    return row;
  }

  // Gives a person another picture, or takes it away.
  change(one, name, picture) {
    const place = this.characters.indexOf(one);
    const changed = picture ? [{ ...one, picture }] : [];
    this.characters = this.characters.toSpliced(place < 0 ? this.characters.length : place, 1, ...changed);
    this.onChange();
    this.list.querySelector(`[aria-label="Picture for ${name}"]`)?.focus();
  }

  // Whether the user changed who has which picture. Only `choose` and `change` replace characters.
  get changed() {
    const [now, given] = [this.characters, this.given];
    if (now.length === 1 && !given.length) return false;
    const isSame = (one, index) => one.person === given[index].person && one.picture === given[index].picture;
    return now.length !== given.length || !now.every(isSame);
  }

  // A form with the pictures. The server keeps only the job's own picture, so the form has all the others.
  async form() {
    const data = new FormData();
    data.set("characters", JSON.stringify(this.characters.map(({ person }) => person)));
    const others = this.characters.slice(1).map(({ picture }) => picture);
    const files = await Promise.all(others.map((one) => (one instanceof File ? one : download(one))));
    for (const [index, file] of files.entries()) data.set(`reference_${index + 2}`, file);
    return data;
  }

  // The choice of a person by number, in the words of `characters` if the job has them.
  who(number) {
    const given = this.given.find((one) => one.number === number);
    return { number, person: given?.person ?? (number && `index:${number}`) };
  }
}

// The number of the person whom a choice means, if it says one. Person 1 is the largest.
function numberOf(person) {
  return person === "largest" ? 1 : Number(/^index:\s*(\d+)/.exec(person)?.[1]) || undefined;
}

function thumbnail(picture, name) {
  const image = make("img", { alt: `The picture for ${name}` });
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
