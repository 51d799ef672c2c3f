"use strict";
// unpacked(id): the data that stands gzipped in that element. The figures are put in their places.
const unpacked = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
};
unpacked("figures-data").then((images) => {
  for (const place of document.querySelectorAll("[data-figure]")) {
    place.innerHTML = images[place.dataset.figure];
  }
  // What a link leads to has moved.
  if (!location.hash.startsWith("#cell=")) document.getElementById(location.hash.slice(1))?.scrollIntoView();
});
