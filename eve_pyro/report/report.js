// Pages through the pictures of a pager one at a time. Without it, all of them are there.
for (const pager of document.querySelectorAll("[data-pager]")) {
  const pages = [...pager.querySelectorAll("[data-page]")];
  if (pages.length < 2) continue;
  let shown = 0;
  const bar = document.createElement("div");
  bar.className = "controls";
  const button = (text, name, step) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", name);
    made.addEventListener("click", () => show(shown + step));
    return made;
  };
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", pager.dataset.pager);
  pages.forEach((page, i) => choice.add(new Option(page.dataset.page, i)));
  choice.addEventListener("change", () => show(Number(choice.value)));
  const count = document.createElement("span");
  count.setAttribute("aria-live", "polite");
  const show = (number) => {
    shown = (number + pages.length) % pages.length;
    pages.forEach((page, i) => { page.hidden = i !== shown; });
    choice.value = shown;
    count.textContent = `${shown + 1} of ${pages.length}`;
  };
  bar.append(button("←", "Previous", -1), choice, button("→", "Next", 1), count);
  pager.prepend(bar);
  show(0);
}
