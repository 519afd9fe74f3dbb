"use strict";
// The page is complete without this. It adds the filter and the large view of the gallery; it loads nothing and makes
// elements only from what the page holds, never from text.
(() => {
  const gallery = document.querySelector(".gallery");
  if (!gallery) return;
  document.documentElement.classList.add("js");
  const cards = [...gallery.querySelectorAll(".card")];
  const shown = () => cards.filter((card) => !card.hidden);

  const filters = document.querySelector(".filters");
  if (filters) {
    filters.hidden = false;
    filters.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const bucket = button.dataset.bucket;
      for (const other of filters.children) other.setAttribute("aria-pressed", String(other === button));
      for (const card of cards) card.hidden = bucket !== undefined && card.dataset.bucket !== bucket;
    });
  }

  const make = (name, className, text) => {
    const element = document.createElement(name);
    element.className = className;
    if (text) element.textContent = text;
    return element;
  };
  const dialog = make("dialog", "large");
  const stage = make("div", "view");
  const picture = make("img", "");
  const words = make("div", "words");
  const bar = make("div", "bar");
  const place = make("span", "place");
  const control = (text, label, act) => {
    const button = make("button", "", text);
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.addEventListener("click", act);
    return button;
  };
  let current = null;
  const show = (card) => {
    current = card;
    const small = card.querySelector("img");
    picture.src = small.src;
    picture.alt = small.alt;
    // Small pictures are enlarged by a whole number, so that each of their pixels can be seen.
    const longest = Math.max(small.naturalWidth, small.naturalHeight, 1);
    const times = Math.max(1, Math.floor(480 / longest));
    picture.style.width = small.naturalWidth ? `${small.naturalWidth * times}px` : "";
    picture.classList.toggle("pixels", times > 2);
    words.replaceChildren(
      ...[...card.querySelectorAll("figcaption > p:not(.meta)")].map((p) => p.cloneNode(true)),
      card.querySelector("dl").cloneNode(true),
    );
    words.scrollTop = 0;
    const all = shown();
    place.textContent = `${all.indexOf(card) + 1} of ${all.length}`;
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, "", `#${card.id}`);
  };
  const move = (by) => {
    const all = shown();
    show(all[(all.indexOf(current) + by + all.length) % all.length]);
  };
  bar.append(
    control("←", "Previous picture", () => move(-1)),
    control("→", "Next picture", () => move(1)),
    place,
    control("×", "Close", () => dialog.close()),
  );
  stage.append(picture);
  dialog.append(bar, stage, words);
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    history.replaceState(null, "", location.pathname + location.search);
    current?.querySelector("button.open").focus();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  gallery.addEventListener("click", (event) => {
    const open = event.target.closest("button.open");
    if (open) show(open.closest(".card"));
  });
  const fromAddress = () => {
    const card = cards.find((card) => `#${card.id}` === location.hash);
    if (card) show(card);
  };
  window.addEventListener("hashchange", fromAddress);
  window.addEventListener("load", fromAddress);
})();
