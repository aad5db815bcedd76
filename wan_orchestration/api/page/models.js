// The model families, and which settings apply to each, as the server lists them.

import { request } from "./http.js";

let listed = { families: [] };

export async function loadModels() {
  listed = await request("/animate/models");
  return listed;
}

// A family by its name. "auto" is that of the server's weights.
export function familyOf(name) {
  const wanted = name === "auto" ? listed.auto : name;
  return listed.families.find((family) => family.name === wanted);
}

// A model in words: "Wan-Animate-2, distilled"
export function modelInWords({ model, variant }) {
  return [familyOf(model)?.title ?? model, variant].filter(Boolean).join(", ");
}
