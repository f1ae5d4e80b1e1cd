// Words that the page has of its own, each explained where it first occurs and in the list at the foot.
"use strict";
const words = (() => {
  const { el } = draw;
  const WORDS = {
    "round": "One turn of a node: it answers problems, criticises and revises, hears its peers, scores what was said, and learns.",
    "epoch": "A stretch of some rounds that the chain counts (its contract calls it a round, too). With each begins a new beacon, and nodes commit to what they have published in the one before.",
    "group": "All answers (or critiques, or revisions) that one node gives to one problem in one round. Where they differ in reward, the better ones can be told from the worse: that is what is learned from.",
    "reward": "What a completion earns, as the reader's own scorer finds it: for an answer, 1 is right and 0 is wrong; some critiques and revisions may earn more.",
    "advantage": "How much better a completion is than others of its group.",
    "loss": "What an update makes smaller. A group's part of it is that of the update's beginning.",
    "held-out": "Problems that no node is ever trained on, the same for all. Usually the likeliest token is taken each time, so that chance has no part in it.",
    "un-spoiled base": "Only where a run begins with the spoiled model (\"embedded\"): the same before it was made to give up on most problems. Such a run brings that skill back, so this is about what can be reached.",
    "beacon": "A number from the chain that nobody knows beforehand (without a chain, one that follows from the seed). It draws problems, whose words are shown to whom, and who checks what.",
    "vote": "Which of the answers that it was shown a critic names best.",
    "winner": "One of up to three peers whose records of an epoch earned most by what a node found itself; it names them to the chain, whose contract calls that a vote.",
    "claim": "What a node tells the chain that it has earned, in full marks. Whoever has its records can find it again.",
    "commitment": "The hash (a Merkle root) of all records that a node has published in an epoch: none of them can be changed later.",
    "audit": "Another node draws the completions of a group again, with the weights and the keys of chance that their author's record names, and sees whether the same tokens come out.",
    "undecided": "What was drawn again was too sure a thing to tell one key from another, or could not be had. It is no sign of a lie.",
    "withheld": "The author is there, and does not show the weights that its record names, which others need to draw it again.",
    "bits": "How surely an audit tells the claimed key from others: with b bits, another would fit as well once in 2 to the power of b. From 20 on, the group counts as produced.",
    "margin": "Evidence, as a power of ten, that other weights or keys than the claimed ones drew the group: from 6 on it counts as not produced. Honest ones are at 0 or a little below.",
    "equivocations": "Two different signed records of one node for the same place: it has told different peers different things.",
    "mesh": "The peers that a node sends each record to at once.",
    "bootnode": "A node whose address others know beforehand: whoever joins asks it for the rest.",
  };
  let made = 0;

  // a word with its meaning behind it, for a mouse, a finger and a keyboard alike
  function term(word, shown = word) {
    const id = `word-${++made}`;
    return [
      el("button", { type: "button", class: "term", popovertarget: id, title: WORDS[word] }, shown),
      el("span", { id, popover: "", class: "word", role: "note" }, el("b", {}, word), `: ${WORDS[word]}`),
    ];
  }

  // a sentence in which the first of each of these words is explained
  function explain(sentence, ...names) {
    let parts = [sentence];
    for (const word of names) {
      const at = parts.findIndex((part) => typeof part === "string" && part.toLowerCase().includes(word));
      if (at < 0) continue;
      const from = parts[at].toLowerCase().indexOf(word), end = from + word.length;
      parts = [...parts.slice(0, at), parts[at].slice(0, from), term(word, parts[at].slice(from, end)), parts[at].slice(end), ...parts.slice(at + 1)];
    }
    return parts;
  }

  // what a word means in this run
  const set = (word, meaning) => { if (meaning) WORDS[word] = meaning; };

  function list(box) {
    box.replaceChildren(el("summary", {}, "Words used here"), el("dl", {}, Object.entries(WORDS).map(([word, meaning]) => [el("dt", {}, word), el("dd", {}, meaning)])));
  }

  return { term, explain, set, list };
})();
