"use strict";
(() => {
  const filter = document.getElementById("filter");
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  const unfold = document.getElementById("unfold");
  const buttons = [...filter.querySelectorAll("button[data-filter]")];
  const chapters = [...document.querySelectorAll(".chapter")].map((element) => ({
    element,
    requirements: [...element.querySelectorAll(".requirement")].map((requirement) => ({
      element: requirement,
      text: requirement.textContent.toLowerCase(),
    })),
  }));
  const all = chapters.flatMap((chapter) => chapter.requirements);

  // Of one kind any may fit; of different kinds, all must.
  const chosen = () => {
    const kinds = new Map();
    for (const button of buttons) {
      if (button.getAttribute("aria-pressed") === "true") {
        const { filter: kind, value } = button.dataset;
        kinds.set(kind, (kinds.get(kind) ?? new Set()).add(value));
      }
    }
    return [...kinds];
  };

  const apply = () => {
    const kinds = chosen();
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let number = 0;
    for (const chapter of chapters) {
      let shown = 0;
      for (const { element, text } of chapter.requirements) {
        const fits = kinds.every(([kind, values]) => values.has(element.dataset[kind]))
          && words.every((word) => text.includes(word));
        element.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      chapter.element.hidden = shown === 0;
      number += shown;
    }
    found.textContent = number === all.length ? `${all.length} requirements` : `${number} of ${all.length} requirements`;
  };

  const clear = () => {
    search.value = "";
    for (const button of buttons) button.setAttribute("aria-pressed", "false");
    apply();
  };

  const goTo = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const hidden = target.closest("[hidden]") ?? target.querySelector(".requirement[hidden]");
    if (hidden) clear();
    if (target.matches("details")) target.open = true;
    target.scrollIntoView({ block: "start" });
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      apply();
    });
  }
  search.addEventListener("input", apply);
  unfold.addEventListener("click", () => {
    const open = unfold.getAttribute("aria-pressed") !== "true";
    unfold.setAttribute("aria-pressed", String(open));
    unfold.textContent = open ? "Fold all" : "Unfold all";
    for (const { element } of all) element.open = open;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && event.target !== search) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && event.target === search) {
      clear();
    }
  });
  addEventListener("hashchange", goTo);
  filter.hidden = false;
  apply();
  goTo();
})();
