"use strict";
// unpacked(id): the data that stands gzipped in that element.
const unpacked = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
};
// unpackedTable(id): the same, of a table, whose rows are packed column by column.
const unpackedTable = async (id) => {
  const data = await unpacked(id);
  const { is, ...rest } = data.rows;
  const keys = Object.keys(rest);
  data.rows = (rest.id ?? []).map((_, at) => {
    const row = { is: is.map((column) => column[at]) };
    for (const key of keys) row[key] = rest[key][at];
    return row;
  });
  return data;
};
