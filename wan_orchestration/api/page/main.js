// Connects the parts of the page: the form, the job in the address, the list of jobs.

import { showText } from "./dom.js";
import { setUpForm } from "./form.js";
import { History } from "./history.js";
import { JOBS, SignedOut, postJson, request } from "./http.js";
import { JobView } from "./job.js";

const find = (selector) => document.querySelector(selector);
const history = new History(find("#history"));
const view = new JobView(find("#job"), (job) => history.update(job), removed);

const modelChoice = setUpForm(find("#new-video"), (job) => {
  history.update(job);
  showJob(job.job_id);
});

function showJob(jobId) {
  if (location.hash === `#${jobId}`) openFromAddress();
  else location.hash = jobId;
}

function removed(jobId) {
  history.remove(jobId);
  view.hide();
  window.history.replaceState(null, "", location.pathname);
}

async function openFromAddress() {
  const jobId = location.hash.slice(1);
  history.markOpenJob();
  if (!jobId) return view.hide();
  try {
    view.open(await request(`${JOBS}/${encodeURIComponent(jobId)}`));
    find("#job-title").focus({ preventScroll: true });
    find("#job").scrollIntoView({ block: "nearest" });
  } catch (problem) {
    if (problem instanceof SignedOut) return signIn();
    removed(jobId);
  }
}

function signIn() {
  for (const card of document.querySelectorAll("main > .card")) card.hidden = card.id !== "sign-in";
  find("#sign-out").hidden = true;
  find("#token").focus();
}

find("#sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const error = find("#sign-in .error");
  try {
    await postJson("/session", { token: find("#token").value });
    find("#token").value = "";
    showText(error, "");
    sessionStorage.setItem("signed-in", "yes");
    for (const card of document.querySelectorAll("main > .card")) card.hidden = ["sign-in", "job"].includes(card.id);
    start();
  } catch (problem) {
    showText(error, problem.message);
  }
});

find("#sign-out").addEventListener("click", async () => {
  await request("/session", { method: "DELETE" });
  sessionStorage.removeItem("signed-in");
  signIn();
});

async function start() {
  find("#sign-out").hidden = !sessionStorage.getItem("signed-in");
  try {
    await modelChoice.load();
    await history.load();
    await openFromAddress();
  } catch (problem) {
    if (problem instanceof SignedOut) signIn();
    else showText(find("#new-video .error"), problem.message);
  }
}

window.addEventListener("hashchange", openFromAddress);
start();
