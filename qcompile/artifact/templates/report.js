"use strict";
// Search, sorting and opening of the sites; links from charts to them; two ways to add modules up.
const sites = document.getElementById("sites"), find = document.getElementById("find"), count = document.getElementById("count");
const bodies = [...sites.tBodies];
function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const body of bodies) {
    const hit = words.every(word => body.textContent.toLowerCase().includes(word));
    body.hidden = !hit; shown += hit;
  }
  count.textContent = `${shown} of ${bodies.length}`;
}
find.addEventListener("input", filter); filter();
function open(body, on) {
  body.classList.toggle("open", on);
  body.querySelector("button").setAttribute("aria-expanded", body.classList.contains("open"));
}
for (const body of bodies) body.rows[0].addEventListener("click", () => open(body));
function goTo(name) {
  const body = bodies.find(one => one.dataset.site === name);
  find.value = ""; filter();
  bodies.forEach(one => one.classList.toggle("marked", one === body));
  open(body, true); body.scrollIntoView({ block: "center" }); body.querySelector("button").focus({ preventScroll: true });
}
for (const spot of document.querySelectorAll("[data-of]")) {
  spot.addEventListener("click", () => goTo(spot.dataset.of));
  spot.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); goTo(spot.dataset.of); } });
}
for (const button of document.querySelectorAll("[data-shares]")) button.addEventListener("click", () => {
  for (const other of document.querySelectorAll("[data-shares]")) {
    other.setAttribute("aria-pressed", other === button);
    document.getElementById(other.dataset.shares).hidden = other !== button;
  }
});
