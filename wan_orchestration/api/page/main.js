// Puts the page together: the form, the job that the address names, the list.

import { JOBS, SignedOut, ask } from "./server.js";
import { orders, say } from "./order.js";
import { History } from "./history.js";
import { JobView } from "./job.js";

const part = (selector) => document.querySelector(selector);
const history = new History(part("#history"));
const view = new JobView(part("#job"), (job) => history.update(job), gone);

orders(part("#order"), (job) => {
  history.update(job);
  go(job.job_id);
});

function go(jobId) {
  if (location.hash === `#${jobId}`) openNamed();
  else location.hash = jobId;
}

function gone(jobId) {
  history.remove(jobId);
  view.hide();
  window.history.replaceState(null, "", location.pathname);
}

async function openNamed() {
  const jobId = location.hash.slice(1);
  history.mark();
  if (!jobId) return view.hide();
  try {
    view.open(await ask(`${JOBS}/${encodeURIComponent(jobId)}`));
    part("#job-title").focus({ preventScroll: true });
    part("#job").scrollIntoView({ block: "nearest" });
  } catch (problem) {
    if (problem instanceof SignedOut) return signIn();
    gone(jobId);
  }
}

function signIn() {
  for (const card of document.querySelectorAll("main > .card")) card.hidden = card.id !== "sign-in";
  part("#sign-out").hidden = true;
  part("#token").focus();
}

part("#sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const error = part("#sign-in .error");
  const body = JSON.stringify({ token: part("#token").value });
  try {
    await ask("/session", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    part("#token").value = "";
    say(error, "");
    sessionStorage.setItem("signed-in", "yes");
    for (const card of document.querySelectorAll("main > .card")) card.hidden = ["sign-in", "job"].includes(card.id);
    start();
  } catch (problem) {
    say(error, problem.message);
  }
});

part("#sign-out").addEventListener("click", async () => {
  await ask("/session", { method: "DELETE" });
  sessionStorage.removeItem("signed-in");
  signIn();
});

async function start() {
  part("#sign-out").hidden = !sessionStorage.getItem("signed-in");
  try {
    await history.load();
    await openNamed();
  } catch (problem) {
    if (problem instanceof SignedOut) signIn();
    else say(part("#order .error"), problem.message);
  }
}

window.addEventListener("hashchange", openNamed);
start();
