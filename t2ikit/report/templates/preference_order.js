// The order of a rater's comparisons: the same function as in t2ikit/report/preference/orders.py.

// FIPS 180-4. In the browser's own crypto, SHA-256 is asynchronous, and missing from pages that come by plain http.
const sha256 = (() => {
  const primes = [];
  for (let number = 2; primes.length < 64; number++) if (primes.every((prime) => number % prime)) primes.push(number);
  const fraction = (root) => ((root - Math.floor(root)) * 2 ** 32) >>> 0;
  const rounds = primes.map((prime) => fraction(Math.cbrt(prime)));
  const start = primes.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)));
  const turn = (word, bits) => (word >>> bits) | (word << (32 - bits));

  return (text) => {
    const bytes = new TextEncoder().encode(text);
    const blocks = new DataView(new ArrayBuffer(Math.ceil((bytes.length + 9) / 64) * 64));
    bytes.forEach((byte, index) => blocks.setUint8(index, byte));
    blocks.setUint8(bytes.length, 0x80);
    blocks.setUint32(blocks.byteLength - 4, bytes.length * 8); // a text of less than 512 MB
    const hash = [...start];
    const words = new Uint32Array(64);
    for (let offset = 0; offset < blocks.byteLength; offset += 64) {
      for (let index = 0; index < 64; index++) {
        if (index < 16) {
          words[index] = blocks.getUint32(offset + 4 * index);
          continue;
        }
        const [before, last] = [words[index - 15], words[index - 2]];
        const low = turn(before, 7) ^ turn(before, 18) ^ (before >>> 3);
        const high = turn(last, 17) ^ turn(last, 19) ^ (last >>> 10);
        words[index] = words[index - 16] + low + words[index - 7] + high;
      }
      let [a, b, c, d, e, f, g, h] = hash;
      for (let index = 0; index < 64; index++) {
        const choice = (e & f) ^ (~e & g);
        const majority = (a & b) ^ (a & c) ^ (b & c);
        const first = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + choice + rounds[index] + words[index]) | 0;
        const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + majority) | 0;
        [a, b, c, d, e, f, g, h] = [(first + second) | 0, a, b, c, (d + first) | 0, e, f, g];
      }
      [a, b, c, d, e, f, g, h].forEach((word, index) => (hash[index] = (hash[index] + word) | 0));
    }
    return hash.map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  };
})();

// All comparisons of a rater, one question after the other: {question, prompt, left, right}.
function comparisonsOf(page, rater) {
  return page.questions.flatMap(({ name: question }) => {
    const drawn = [];
    for (const { id: prompt, pictures } of page.prompts) {
      for (let first = 0; first < pictures.length; first++) {
        for (let second = first + 1; second < pictures.length; second++) {
          const pair = [pictures[first], pictures[second]];
          const key = sha256([page.seed, rater, question, prompt, ...pair].join("\0"));
          const [left, right] = parseInt(key[63], 16) % 2 ? [pair[1], pair[0]] : pair;
          drawn.push({ key, shown: { question, prompt, left, right } });
        }
      }
    }
    const by = (part) => (one, other) => (part(one) < part(other) ? -1 : 1);
    drawn.sort(by(({ key }) => key));
    const half = Math.ceil(drawn.length / 2);
    const early = drawn.slice(0, half).sort(by(({ key }) => key.slice(32)));
    const repeated = new Set(early.slice(0, page.repeats));
    const order = [];
    drawn.forEach((entry, index) => {
      order.push(entry.shown);
      const before = drawn[index - half + 1]; // a repeat comes half of the comparisons later
      if (before && repeated.has(before)) {
        order.push({ ...before.shown, left: before.shown.right, right: before.shown.left });
      }
    });
    return order;
  });
}
