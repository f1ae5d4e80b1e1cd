// What each view shows. `page` has get(name, given), go(name, given), given and live.
"use strict";
const views = (() => {
  const { term, explain } = words;
  const { el, count, percent, fixed, signed, seconds, short, name, names, who, text, table, section, figure, chart, stacked, matrix } = draw;
  const STAGE = { answer: "answer", critique: "critique", revise: "revision" };

  // --- now

  async function now(page) {
    const [found, lineage] = await Promise.all([page.get("now"), page.get("lineage")]);
    if (!found.nodes.length) return [el("p", { class: "lead" }, "No node has finished a round yet."), el("p", { class: "quiet" }, "At a first start the model's programs are compiled, a minute or two. This page shows rounds as they end.")];
    const learning = await page.get("learning");
    const mean = learning.held_out.mean, before = mean.length ? mean[0][1] : null, after = mean.length > 1 ? mean[mean.length - 1][1] : null;
    const rewards = found.nodes.map((node) => node.reward).filter(draw.known), learned = found.nodes.reduce((sum, node) => sum + node.learned, 0), own = lineage.own.reduce((a, b) => a + b, 0);
    return [
      teachers(lineage),
      el("p", { id: "sharing" }, el("b", {}, "Did sharing help? "), learning.sharing || "Nodes alone have not been played beside this run (config.swarm.alone), or not been measured yet: it does not show."),
      el("dl", { class: "figures" },
        figure([term("held-out"), " accuracy, mean"], percent(after ?? before), after === null ? "before learning" : `${signed(100 * (after - before), 1)} points since the start, in ${found.tasks.join(", ")}`),
        figure([term("reward"), ", last ten rounds"], fixed(rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null), "of a first answer; 1 is right"),
        figure("learned from peers", percent(learned + own ? learned / (learned + own) : null), `${count(learned)} of ${count(learned + own)} groups`),
        found.chain && figure("chain", found.chain.round === null ? "–" : [term("epoch"), ` ${count(found.chain.round)}`], `${found.chain.kind}${found.chain.waiting ? `, ${count(found.chain.waiting)} to be sent` : ""}`)),
      nodes(found),
      el("p", { id: "verdict" }, el("b", {}, "Was anybody cheating? "), found.verdict, " ", el("a", { href: "#/trust" }, "Trust")),
      el("p", { id: "trouble" }, explain(found.trouble, "beacon", "bootnode"), " ", el("a", { href: "#/network" }, "The network")),
      found.error ? el("p", {}, el("span", { class: "error" }, "Last warning: "), name(found.error.node), ": ", el("span", { class: "said" }, found.error.text)) : el("p", { class: "quiet" }, "No warning in any log here."),
      chart("Held-out accuracy, over rounds learned from", heldOut(learning), { percent: true, to: 1 }),
    ];
  }

  // who learned most from whom, or that nobody was preferred; then why, and only then the evidence
  function teachers(lineage) {
    const known = lineage.why.filter(Boolean).sort((a, b) => a.even - b.even || b.groups / b.of - a.groups / a.of || b.groups - a.groups);
    if (!known.length) return el("p", { class: "lead" }, "Nobody has learned from anybody yet.");
    const top = known[0], learner = lineage.learners.find((one) => one.name === top.learner), even = known.every((one) => one.even);
    const share = `${count(top.groups)} of its ${count(top.of)} `, rest = ` of peers (${percent(top.groups / top.of)}; an even share is ${percent(1 / top.authors)})`;
    const said = top.authors === 1 ? [name(top.learner), " learned from ", name(top.author), ` alone, ${count(top.groups)} `, term("group", "groups"), ". "]
      : even ? [el("b", {}, "Shares are even: nobody was preferred. "), "The largest, ", name(top.learner), " from ", name(top.author), `, is ${share}`, term("group", "groups"), `${rest}, which is within chance. `]
        : [el("b", {}, name(top.learner)), " learned most from ", el("b", {}, name(top.author)), `: ${share}`, term("group", "groups"), `${rest}, more than chance makes. `];
    return [
      el("p", { class: "lead", id: "teachers" }, said, el("a", { href: `#/lineage?node=${learner.index}&author=${top.hex}` }, "See what it was taught")),
      el("p", { id: "why" }, el("b", {}, "Why? "), reason(lineage.choosing), draw.known(top.reward) ? el("span", { class: "quiet" }, ` What ${top.learner} took from there earned ${fixed(top.reward)} in the mean; its own first answers earned ${fixed(top.own_reward)}${draw.known(top.their_reward) ? `, its teacher's ${fixed(top.their_reward)}` : ""}, over all rounds (groups that teach nothing are not taken, so the first may well be the highest).` ) : null),
    ];
  }

  const reason = (choosing) => (choosing ? `${choosing[0].toUpperCase()}${choosing.slice(1)}.` : "How authors are drawn is not known here.");

  function nodes(found) {
    const rounds = found.rounds;
    return table("Nodes", [
      ["node", (node) => who(node.name)],
      ["does", (node) => [node.state ? [el("span", { class: node.state === "stalled" ? "differs" : "quiet" }, node.state), ": "] : null, node.doing, node.waiting.length ? el("div", { class: "quiet" }, "not yet here: ", node.waiting.map((one, place) => [place ? "; " : "", el("b", {}, name(one.name)), ` (${one.why})`]), draw.known(node.until) && node.until > 0 ? `; it goes on in ${seconds(node.until)} at the latest` : "") : null], { left: true }],
      ["round", (node) => [count(node.done), rounds ? el("progress", { class: "progress", max: rounds, value: node.done, "aria-label": `${node.done} of ${rounds} rounds` }) : null]],
      ["peers", (node) => count(node.peers)],
      ["reward, last ten rounds", (node) => fixed(node.reward)],
      ["held-out", (node) => percent(node.held_out)],
    ], found.nodes);
  }

  // --- learning

  function heldOut(learning) {
    const base = learning.held_out.base, mean = learning.held_out.mean;
    const lines = learning.held_out.lines.map((line) => ({ ...line }));
    if (base !== null && mean.length > 1) lines.push({ name: "un-spoiled base", shown: term("un-spoiled base"), points: [[mean[0][0], base], [mean[mean.length - 1][0], base]], dash: true, colour: 7 });
    return lines;
  }

  async function learning(page) {
    const found = await page.get("learning"), problems = found.held_out.problems;
    const soft = (lines) => lines.map((line, number) => ({ ...line, colour: number })), ten = "mean of the last ten rounds";
    return [
      el("div", { class: "grid" },
        section([term("held-out", "Held-out"), " accuracy"], chart(`Greedy, on ${count(problems)} problems nobody trains on`, heldOut(found), { percent: true, to: 1 })),
        section("Reward of first answers", chart(`By node, ${ten}; 1 is right`, found.reward.lines, { show: fixed })),
        section("By task", chart("Held-out accuracy, mean over nodes", found.tasks.map((line, number) => ({ ...line, colour: number })), { percent: true, to: 1 })),
        section("By stage", chart(`Reward, mean over nodes, ${ten}`, soft(found.stages), { show: fixed })),
        found.game.some((line) => line.points.length) && section("Do critics and revisions help?", chart(`Share right on the problems all nodes share, ${ten}`, soft(found.game), { percent: true, to: 1 })),
        found.alone.length ? section("Did sharing help? The swarm against nodes alone", el("p", {}, found.sharing), chart("Held-out accuracy after the same rounds, mean over nodes", found.alone.map((line, number) => ({ ...line, colour: [2, 1, 7][number] })), { percent: true, to: 1 })) : null,
        section("What is left to learn", chart(`Share of a node's own groups that teach nothing, as all earn the same, ${ten}`, soft([found.teaching.live]), { percent: true, to: 1 })),
        section("Variety", chart(`Entropy of what is sampled, nats a token, ${ten}`, [{ ...found.teaching.entropy, name: "entropy", colour: 6 }], { show: fixed }))),
      section("Before and after", table("Held-out accuracy of each node, with the 95 % Wilson interval", [
        ["node", (one) => who(one.name)], ["rounds", (one) => count(one.rounds)], ["before", (one) => percent(one.before)], ["now", (one) => percent(one.after)],
        ["95 %", (one) => (one.interval ? `${(100 * one.interval[0]).toFixed(1)} to ${(100 * one.interval[1]).toFixed(1)}` : "–")],
        ["gain, points", (one) => (draw.known(one.after) ? signed(100 * (one.after - one.before), 1) : "–")],
      ], found.held_out.ends)),
    ];
  }

  // --- lineage

  async function lineage(page) {
    const found = await page.get("lineage"), names = found.authors.map((one) => one.name);
    const chosen = found.learners.find((one) => String(one.index) === page.given.node), all = chosen === undefined;
    const flow = names.map((_, author) => {
      const rows = found.flow.learners.filter((_, place) => all || found.learners[place].index === chosen.index).map((row) => row[author]);
      return Array.from({ length: Math.max(...rows.map((row) => row.length), 0) }, (_, at) => rows.reduce((sum, row) => sum + (row[at] || 0), 0));
    });
    const panel = el("div", { id: "lessons", "aria-live": "polite" });
    const cell = (row, column) => {
      const learner = found.learners[row], author = found.authors[column], own = learner.author === author.author;
      const value = own ? found.own[row] : found.counts[row][column];
      return {
        value, own, text: own ? `own ${count(value)}` : null, key: `cell-${learner.index}-${column}`,
        pressed: !all && learner.index === chosen.index && (own ? page.given.author === "own" : page.given.author === author.author),
        label: own ? `own ${count(value)}: groups of its own that ${learner.name} learned from` : `${count(value)}: groups of ${author.name} that ${learner.name} learned from`,
        on: () => page.go("lineage", { node: learner.index, author: own ? "own" : author.author }),
      };
    };
    if (!all && page.given.author) lessons(page, chosen, page.given.author === "own" ? "" : page.given.author, panel, found.advantage);
    const why = found.why.filter((one) => one && (all || one.learner === chosen.name));
    return [
      section("Who learned from whom", el("p", { class: "quiet" }, term("group", "Groups"), " of completions that taught a node something. Choose a number to read them: what was asked, what was said, what it earned, and what it did to the ", term("loss"), "."),
        matrix("A row is a learner, a column the author of what it learned from", "learner", found.learners.map((one) => one.name), names, cell)),
      panel,
      section("When", el("div", { class: "controls" }, el("label", { for: "learner" }, "Learner "),
        el("select", { id: "learner", "data-key": "learner", onchange: (event) => page.go("lineage", { node: event.target.value }) }, el("option", { value: "" }, "all nodes"), found.learners.map((one) => el("option", { value: one.index, selected: !all && one.index === chosen.index }, one.name)))),
        stacked(`Groups learned from, by author${all ? "" : `: ${chosen.name}`}`, names, flow, found.flow.first, found.flow.width, found.flow.last)),
      section("Why", el("p", {}, `${reason(found.choosing)} ${found.drawing}`),
        table("The evidence: each learner's first teacher", [
          ["learner", (one) => who(one.learner)], ["learned most from", (one) => who(one.author), { left: true }],
          ["groups", (one) => `${count(one.groups)} of ${count(one.of)}`], ["share", (one) => percent(one.groups / one.of)], ["even share", (one) => percent(1 / one.authors)], ["by chance", (one) => [one.even ? "even" : "uneven", draw.known(one.chance) ? ` (${one.chance < 0.001 ? "p < 0.001" : `p ${fixed(one.chance, 3)}`})` : ""]],
          ["reward of what it taught", (one) => fixed(one.reward)], ["learner's own reward", (one) => fixed(one.own_reward)], ["teacher's own", (one) => fixed(one.their_reward)],
          ["of which", (one) => Object.entries(one.stages || {}).map(([stage, groups]) => `${count(groups)} ${STAGE[stage] || stage}${groups === 1 ? "" : "s"}`).join(", ") || "–", { left: true }],
        ], why), el("p", { class: "quiet" }, "By chance: how often even shares come out at least as uneven (chi-square test of all that a learner learned from; they count as uneven below 1 %, divided by the number of nodes).")),
    ];
  }

  // groups by the round in which they were learned, the newest first, or from the round on that the address names
  async function lessons(page, learner, author, panel, advantage, before) {
    const first = before === undefined;
    if (first && page.given.at && page.has("lessons", { node: learner.index, author, before: Number(page.given.at) + 1 })) before = Number(page.given.at) + 1;
    try {
      const found = await page.get("lessons", { node: learner.index, author, before });
      const top = author ? `#/lineage?node=${learner.index}&author=${author}` : `#/lineage?node=${learner.index}&author=own`;
      if (first) panel.replaceChildren(el("h2", {}, "What ", name(learner.name), " learned from ", author ? name(found.name) : "itself"),
        el("p", { class: "quiet" }, "By the round in which it was learned, ", before ? [`from round ${page.given.at} back (`, el("a", { href: top }, "the newest"), ")"] : "the newest first", ". ", explain(advantage, "advantage", "group"), " ", found.unused ? `${found.unused} Those left out are grey.` : ""));
      panel.querySelector(".more")?.remove();
      if (!found.groups.length && first) panel.append(el("p", {}, "The run was recorded before groups were written down, so only their numbers are known."));
      for (const group of found.groups) panel.append(lesson(page, found, group, learner));
      const shown = location.hash;
      if (page.live && first && found.groups.some((group) => group.soon)) setTimeout(() => panel.isConnected && location.hash === shown && lessons(page, learner, author, panel, advantage), 4000);
      const older = () => lessons(page, learner, author, panel, advantage, found.next);
      if (found.next !== null) panel.append(el("p", { class: "more" }, el("button", { type: "button", class: "plain", onclick: older }, "Older ones")));
      const wanted = page.given.group && document.getElementById(page.given.group);
      if (wanted) wanted.classList.add("meant");
      else if (page.given.group && found.next !== null && page.has("lessons", { node: learner.index, author, before: found.next })) return older();
      if (first || wanted) (wanted || panel.querySelector("h2")).scrollIntoView({ block: wanted ? "center" : "start" });
      for (const fill of panel.querySelectorAll("article.group")) await fill.question?.();
    } catch (error) {
      panel.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
    }
  }

  const slot = (group, learned) => `slot-${learned}-${group.round}-${group.stage}-${group.index}`;

  function lesson(page, found, group, learner) {
    const task = group.task ? `${group.task}, ` : "", late = group.learned - group.round;
    const part = draw.known(group.part) ? [`It is ${signed(group.part, 3)} of the round's `, term("loss"), ` of ${signed(group.loss, 3)}. `] : null;
    const question = el("div", { class: "asked" }), texts = el("div", {}, completions(group));
    fillAsked(question, group.asked);
    const made = el("article", { class: "group", id: slot(group, group.learned) },
      el("h4", {}, `Learned in round ${group.learned}, written ${late ? `${late} round${late > 1 ? "s" : ""} before, in round ${group.round}` : "in it"}: ${task}${STAGE[group.stage]} ${group.stage === "answer" ? "to" : "of"} problem ${group.index}`),
      el("p", { class: "quiet" }, part, el("a", { href: `#/round?node=${learner.index}&round=${group.learned}` }, `Round ${group.learned} of ${learner.name}`)),
      question, texts, group.here ? null : el("p", { class: "quiet" }, group.soon ? "Its texts are not written down yet." : "Its texts are not in a journal here any more; rewards are."));
    const given = { node: found.author ? found.node ?? learner.index : learner.index, round: group.round, author: found.author || learner.author };
    if (group.here && page.has("prompts", given)) made.question = async () => { // once: derived again from the record
      made.question = null;
      if (!made.isConnected) return;
      if (!group.asked) question.replaceChildren(el("p", { class: "quiet" }, "The question is derived again from its seed …"));
      try {
        const turn = (await page.get("prompts", given)).turns.find((one) => one.stage === group.stage && one.index === group.index);
        if (!turn) throw new Error("it cannot be made again from what is here.");
        fillAsked(question, turn);
        texts.replaceChildren(completions({ ...group, says: turn.says }));
      } catch (error) {
        question.replaceChildren(el("p", { class: "quiet" }, `What was asked is not known here: ${error.message}`));
      }
    };
    return made;
  }

  // the question, what is right and how that is judged; behind it, where it is known, the prompt as the model saw it
  function fillAsked(box, told) {
    if (!told) return box.replaceChildren();
    const right = told.right.length ? ["Right is ", el("span", { class: "said" }, told.right[0]), told.right.length > 1 ? [" (also ", el("span", { class: "said" }, told.right.slice(1).join(" or ")), ")"] : "", ". "] : "";
    const cut = (said) => (said.of ? ` … cut: ${count(said.of)} characters` : "");
    const said = (label, shown) => el("div", { class: "prompt said", tabindex: "0", role: "region", "aria-label": label }, shown.text, cut(shown));
    return box.replaceChildren(
      said("question", told.question),
      el("p", {}, right, el("span", { class: "quiet" }, told.judged)),
      told.full || told.prompt ? el("details", {}, el("summary", {}, "In full"), told.full ? said("question in full", told.full) : "", told.prompt ? [el("p", {}, "As the model saw it:"), said("prompt", told.prompt)] : "") : "");
  }

  function completions(group) {
    const texts = group.texts || (group.rewards || []).map(() => ({ text: "" }));
    const all = texts.map((said, place) => ({ said, reward: group.rewards?.[place], advantage: group.advantages?.[place], length: group.lengths?.[place], used: group.used ? group.used[place] : group.learned_from, prompted: group.says?.[place], times: 1 }));
    const alike = new Map(); // equal completions, which earn the same, are one line
    for (const row of all) {
      const key = JSON.stringify([row.said, row.reward, row.length, row.used, row.prompted]);
      if (alike.has(key) && group.texts) alike.get(key).times++;
      else alike.set(group.texts ? key : alike.size, row);
    }
    const rows = [...alike.values()];
    const body = rows.map((row) => el("tr", { class: row.used ? null : "unused" },
      el("td", { class: "quiet times" }, row.times > 1 ? `${row.times} ×` : ""),
      el("td", { class: "left" }, group.texts ? text(row.said) : el("em", { class: "quiet" }, "not here"), row.prompted || !row.used ? el("div", { class: "quiet" }, [row.prompted, !row.used && (group.learned_from ? "left out of learning" : null)].filter(Boolean).join("; ")) : null),
      el("td", {}, draw.known(row.reward) ? draw.reward(row.reward) : "–"),
      el("td", { class: row.advantage > 0 ? "better" : row.advantage < 0 ? "worse" : null }, draw.known(row.advantage) ? signed(row.advantage) : "–"),
      el("td", {}, count(row.length))));
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "completions" }, el("table", {}, el("caption", { class: "unseen" }, "Completions with what they earned"), el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "unseen" }, "times")), el("th", { scope: "col", class: "left" }, "completion"), [term("reward"), term("advantage"), "tokens"].map((title) => el("th", { scope: "col" }, title)))), el("tbody", {}, body)));
  }

  // --- a round

  async function round(page) {
    const [now, found] = await Promise.all([page.get("now"), page.get("round", page.live || page.given.round ? { node: page.given.node || 0, round: page.given.round } : { node: 0, round: Math.max(0, (await page.get("now")).nodes[0].done - 1) })]);
    const last = Math.max(...now.nodes.map((node) => node.done)) - 1, at = found.round;
    const move = (to) => page.go("round", { node: found.node, round: Math.max(0, to) });
    const controls = el("div", { class: "controls" },
      el("label", { for: "node" }, "Node"), el("select", { id: "node", "data-key": "node", onchange: (event) => page.go("round", { node: event.target.value, round: at }) }, now.nodes.map((node) => el("option", { value: node.index, selected: node.index === found.node }, node.name))),
      el("label", { for: "number" }, "Round"), el("input", { id: "number", type: "number", min: 0, max: last, value: at, "data-key": "number", onchange: (event) => move(Number(event.target.value)) }),
      el("button", { type: "button", class: "plain", "data-key": "back", onclick: () => move(at - 1), disabled: at <= 0 }, "Earlier"),
      el("button", { type: "button", class: "plain", "data-key": "on", onclick: () => move(at + 1), disabled: at >= last }, "Later"));
    const parts = el("div", {});
    fill(parts, page, found, null);
    const asking = el("div", { "aria-live": "polite" });
    if (found.stages.length && page.has("prompts", { node: found.node, round: at })) prompted(page, found, parts, asking);
    return [el("section", {}, el("h2", {}, `Round ${at} of `, who(found.name)), controls, summary(found), found.stages.length && page.live ? tools(page, found) : null, asking), parts];
  }

  // what was asked and what is right, above the texts, as soon as it is derived again
  async function prompted(page, found, parts, asking) {
    if (page.live) asking.replaceChildren(el("p", { class: "quiet" }, "Questions and right answers are derived again from their seeds; the first time takes some seconds …"));
    try {
      const prompts = await page.get("prompts", { node: found.node, round: found.round });
      fill(parts, page, found, prompts);
      asking.replaceChildren();
    } catch (error) {
      asking.replaceChildren(el("p", { class: "quiet" }, `What was asked is not known here: ${error.message}`));
    }
  }

  function summary(found) {
    if (!found.stages.length) {
      const kept = found.kept ? ` Its journal has rounds ${found.kept[0]} to ${found.kept[1]}.` : "";
      return el("p", {}, `The records of this round are not in the node's journal: journals are cut off behind checkpoints.${kept}`);
    }
    const figures = found.figures, updates = found.version !== null ? `It had learned in ${count(found.version)} updates. ` : "";
    return el("p", {}, updates, found.beacon ? ["Its problems come from the chain's ", term("beacon"), ` that begins with ${found.beacon}. `] : "", found.played
      ? `It heard ${count(figures["records/received"])} records of peers, found ${count(figures["groups/received"])} groups in them, ${count(figures["groups/received_with_advantage"])} of which could teach it something, and learned from ${count(figures["groups/local"])} of its own and ${count(figures["groups/external"])} of theirs; the loss was ${signed(figures["learn/loss"], 3)}.`
      : "It has not ended yet, or was left.");
  }

  function tools(page, found) {
    const said = el("div", { "aria-live": "polite" });
    const ask = (title, what) => el("button", { type: "button", class: "plain", "data-key": what, onclick: (event) => computed(page, event.target, said, { what, node: found.node, round: found.round }) }, title);
    return [el("div", { class: "controls" }, ask("Recompute the rewards", "reward"), ask("Recompute the votes", "vote")), said];
  }

  async function computed(page, button, said, given) {
    button.disabled = true;
    said.replaceChildren(el("p", { class: "quiet" }, "Computing; the first time takes some seconds, as the game is loaded …"));
    try {
      said.replaceChildren(verdict(await page.get("again", given)));
    } catch (error) {
      said.replaceChildren(el("div", { class: "verdict", role: "alert" }, el("p", {}, el("span", { class: "quiet" }, "Not checked"), `: ${error.message}`)));
    }
    button.disabled = false;
  }

  // what a recomputation found: {equal, checked, what, differs: [..], command}
  function verdict(found) {
    const word = found.equal === null ? el("span", { class: "quiet" }, "Undecided") : found.equal ? el("span", { class: "equal" }, "Equal") : el("span", { class: "differs" }, "Not equal");
    return el("div", { class: "verdict" }, el("p", {}, word, `: ${found.what}`), (found.differs || []).map((line) => el("p", { class: "said" }, line)), el("p", { class: "quiet" }, "By hand: ", el("code", {}, found.command)));
  }

  // beside a row of a table; what is found stands below the row, as wide as the table
  function again(page, title, given) {
    if (!page.live) return null;
    return el("button", { type: "button", class: "plain", onclick: (event) => {
      const row = event.target.closest("tr"), said = el("td", { class: "left", colspan: row.children.length, "aria-live": "polite" });
      if (row.nextSibling?.classList.contains("found")) row.nextSibling.remove();
      row.after(el("tr", { class: "found" }, said));
      computed(page, event.target, said, given);
    } }, title);
  }

  function fill(parts, page, found, prompts) {
    const told = new Map(((prompts || {}).turns || []).map((turn) => [`${turn.stage} ${turn.index}`, turn]));
    const title = { answer: "It answers", critique: "It criticises what others answered", revise: "It revises" };
    parts.replaceChildren(
      ...found.stages.map((stage) => section(title[stage.stage] || stage.stage, stage.groups.length ? null : el("p", { class: "quiet" }, "It said nothing in this stage."), stage.groups.map((group) => played(stage.stage, group, told.get(`${stage.stage} ${group.index}`))))),
      found.votes.length ? section("The vote", el("p", { class: "quiet" }, "Of each problem that all nodes have: which answer each critic named best, its ", term("vote"), "."), found.votes.map((one) => table(`Problem ${one.index}`, [["critic", (vote) => who(vote.by)], ["names the answer of", (vote) => name(vote.for), { left: true }]], one.votes))) : "",
      found.taught.length ? section("What it learned from others", table("Groups that were drawn for this round", [["author", (one) => who(one.name)], ["written in round", (one) => count(one.round)], ["stage", (one) => STAGE[one.stage] || one.stage, { left: true }], ["rewards", (one) => one.rewards.map(draw.reward).join(" "), { left: true }], ["", (one) => el("a", { href: `#/lineage?node=${found.node}&author=${one.author}&at=${found.round}&group=${slot(one, found.round)}` }, "read it")]], found.taught)) : "",
      found.heard.length ? section("What it heard", table("Records, in the order in which they were read", [["author", (one) => who(one.name)], ["of round", (one) => count(one.round)], ["stage", (one) => STAGE[one.stage] || one.stage, { left: true }], ["groups", (one) => count(one.groups)], ["verdicts", (one) => count(one.verdicts)]], found.heard), found.unheard ? el("p", { class: "quiet" }, `And ${count(found.unheard)} more.`) : null, Object.keys(found.unused).length ? el("p", { class: "quiet" }, "Left unused: ", Object.entries(found.unused).map(([cause, groups]) => `${count(groups)} (${cause})`).join(", ")) : null) : "",
    );
  }

  function played(stage, group, told) {
    const whose = group.shared ? "all nodes have it" : "its own";
    const shown = group.shown.length ? [" It was shown what ", names([...new Set(group.shown)]), " had written."] : "";
    const vote = stage === "critique" ? [" It ", term("vote", "votes"), " for ", group.voted ? ["the answer of ", name(group.voted)] : group.vote === 0 ? "none of them" : "nobody", "."] : "";
    const question = el("div", { class: "asked" });
    fillAsked(question, told || group.asked);
    return el("article", { class: "group" },
      el("h4", {}, `Problem ${group.index}: ${group.task} `, el("span", { class: "quiet" }, `(${whose})`)),
      el("p", { class: "quiet" }, group.learned_from ? "It learned from this." : Math.max(...(group.rewards || [0])) > Math.min(...(group.rewards || [0])) ? "It did not learn from this." : "All earned the same: there is nothing to learn from it.", shown, vote),
      question,
      completions(told ? { ...group, says: told.says } : group));
  }

  // --- ledger

  async function ledger(page) {
    const found = await page.get("ledger");
    if (found.why) return el("p", { class: "lead" }, found.why);
    const list = el("div", {});
    chainRounds(page, list, found);
    return [
      section("The ledger", el("p", { class: "quiet" }, "Contract ", el("span", { class: "hash" }, found.contract), ` on chain ${found.chain}, up to block ${count(found.block)}. `, term("claim", "Claims"), ` are in full marks. ${found.audited ? "What of them is right was found by experiments.audit, all at once." : `No claim has been verified yet, so the column is empty.${page.live ? " Recompute verifies one, now and for you alone;" : ""} python -m experiments.audit verifies all of them and writes it down.`}`),
        table("Peers", [["peer", (peer) => who(peer.name)], ["account", (peer) => el("span", { class: "hash" }, short(peer.account))], ["registered", (peer) => peer.kind], ["claimed", (peer) => fixed(peer.claimed, 3)], ["verified", (peer) => fixed(peer.verified, 3)], [["named ", term("winner")], (peer) => count(peer.votes)], ["transaction", (peer) => el("span", { class: "hash", title: peer.hash }, short(peer.hash))]], found.peers)),
      section("Epoch by epoch", list),
    ];
  }

  function chainRounds(page, list, found) {
    list.querySelector(".more")?.remove();
    for (const one of found.rounds) {
      list.append(el("article", { class: "group wide" }, el("h4", {}, `Epoch ${one.number}`), el("p", { class: "quiet" }, term("beacon", "Beacon"), " ", el("span", { class: "hash", title: one.beacon }, short(one.beacon)), one.advanced ? [", begun by transaction ", el("span", { class: "hash", title: one.advanced }, short(one.advanced))] : ""),
        one.commitments.length ? table(`Commitments and claims of epoch ${one.number}`, [
          ["peer", (c) => who(c.who)], ["records", (c) => count(c.records)], ["root", (c) => el("span", { class: "hash", title: c.root }, short(c.root))], ["claims", (c) => c.claims.map((claim) => `${STAGE[claim.stage] || claim.stage} ${fixed(claim.amount, 3)}`).join(", ") || "nothing", { left: true }],
          ["found", (c) => c.verdict || "–"], ["transaction", (c) => el("span", { class: "hash", title: c.hash }, short(c.hash))], ["", (c) => again(page, "Recompute", { what: "claim", round: one.number, account: c.account })],
        ], one.commitments) : el("p", { class: "quiet" }, "Nobody has committed in it."),
        one.votes.length ? table(`Winners that peers name of epoch ${one.number}`, [["peer", (v) => who(v.who)], ["names", (v) => names(v.for), { left: true }], ["transaction", (v) => el("span", { class: "hash", title: v.hash }, short(v.hash))]], one.votes) : null,
        one.weights.map((w) => el("p", {}, who(w.who), ` publishes weights `, el("span", { class: "hash" }, short(w.weights)), " at ", el("span", { class: "said" }, w.uri)))));
    }
    if (found.next !== null) list.append(el("p", { class: "more" }, el("button", { type: "button", class: "plain", onclick: async () => chainRounds(page, list, await page.get("ledger", { before: found.next })) }, "Earlier epochs")));
  }

  // --- trust

  async function trust(page) {
    const found = await page.get("trust"), sums = found.audits, wrong = sums["not produced"];
    const parts = ["produced", "not produced", "withheld", "undecided"].filter((one) => sums[one] || one !== "withheld").map((one) => `${count(sums[one])} ${one}`);
    return [
      el("p", { class: "lead" }, !sums.drawn ? "No node has checked another's samples in this run." : [
        el("b", {}, `${found.verdict} `), wrong ? `${count(wrong)} of ${count(sums.drawn)} groups that nodes checked were not sampled as their authors say. ` : "",
        `${count(sums.drawn)} groups of peers were drawn for an `, term("audit"), `: ${count(sums.answered)} answered (${parts.join(", ")}), ${count(sums.open)} open.`]),
      sums.drawn ? el("p", { class: "quiet" }, "Which groups, and who checks them, a ", term("beacon"), " draws that nobody knew when they were published. ", sums.undecided ? [term("undecided", "Undecided"), " means that the tokens were too sure a thing to tell by them who drew them: it speaks neither for nor against their author. "] : "", "Open: not found out yet, or drawn twice.") : null,
      section("What each found", table("Of peers' groups: drawn = answered + open, and answered is what was found. Of its own: completions drawn again each round, to find faults in itself", [
        ["auditor", (node) => who(node.name)], ["drawn", (node) => count(node.drawn)], ["answered", (node) => count(node.answered)], ...found.findings.map((one) => [one === "withheld" ? term(one) : one, (node) => count(node[one])]), ["open", (node) => count(node.open)], ["tokens", (node) => count(node.tokens)],
        ["own produced", (node) => count(node.own.produced)], ["own not produced", (node) => count(node.own["not produced"])], [term("equivocations"), (node) => count(node.equivocations)],
      ], found.nodes)),
      found.distrusted.length ? section("Distrusted", table("For what was found out", [["by", (one) => who(one.by)], ["whom", (one) => who(one.whom), { left: true }], ["rounds", (one) => count(one.rounds)]], found.distrusted)) : null,
      section("Verdicts in the latest records", found.verdicts.length ? [el("p", { class: "quiet" }, "From 20 ", term("bits"), " on it is produced; from a ", term("margin"), " of 6 on it is not produced; in between it is undecided."),
        table("Verdicts", [
          ["auditor", (one) => who(one.by)], ["of", (one) => (one.about ? [who(one.about), `, round ${one.of}, ${STAGE[one.stage] || one.stage} ${one.index}`] : el("span", { class: "hash" }, short(one.record))), { left: true }],
          ["finds", (one) => el("span", { class: one.finding === "not produced" ? "differs" : one.finding === "produced" ? "equal" : "quiet" }, one.finding)], ["tokens", (one) => count(one.tokens)], ["bits", (one) => fixed(one.bits, 1)], ["margin", (one) => signed(one.statistic)], ["", (one) => again(page, "Recompute", { what: "verdict", record: one.record, index: one.index })],
        ], found.verdicts)] : el("p", { class: "quiet" }, "There are none in the records that are here.")),
      found.samples ? section("Replayed here", table("By experiments.audit, of each author's groups", [["author", (one) => who(one.name)], ...found.findings.map((name) => [name, (one) => count(one[name])])], found.samples)) : null,
      found.claims ? section("Claims checked here", table("By experiments.audit, in full marks", [["peer", (one) => who(one.name)], ["commitments", (one) => count(one.commitments)], ["claimed", (one) => fixed(one.claimed / 1e6, 3)], ["verified", (one) => fixed(one.verified / 1e6, 3)]], found.claims)) : null,
    ];
  }

  // --- network

  async function network(page) {
    const found = await page.get("network");
    const cell = (row, column) => ({ value: found.received[row][column], own: found.authors[column].name === found.listeners[row], text: found.authors[column].name === found.listeners[row] ? "" : null });
    return [
      section("Who heard whom", matrix("Records that a node read, valid and in time; a column is their author", "reader", found.listeners, found.authors.map((one) => one.name), cell)),
      el("div", { class: "grid" },
        section("Traffic", found.connected ? chart("Bytes of a round, mean over nodes", found.bytes.map((line, number) => ({ ...line, colour: number })), { show: draw.bytes, axis: draw.bytes }) : el("p", { class: "quiet" }, "A simulated network: no bytes are sent.")),
        section("Nodes", table("Sums over all rounds", [["node", (one) => who(one.name)], ["peers now", (one) => count(one.peers)], ["records out", (one) => count(one.published)], ["in", (one) => count(one.received)], ["bytes in", (one) => draw.bytes(one.bytes_in)], ["out", (one) => draw.bytes(one.bytes_out)], ["peers given up", (one) => count(one.given_up)]], found.nodes)),
        section("Refused records, by cause", causes(found.rejected, "No record was refused.")),
        section(["Groups left unused, by cause"], causes(found.unused, "No group was left unused.")),
        found.mesh.length ? section("Connected now", table("A peer in the mesh is sent each record at once, others when they ask", [["node", (one) => who(one.node)], ["peer", (one) => who(one.peer)], [term("mesh"), (one) => (one.mesh ? "in it" : "not in it"), { left: true }], ["for", (one) => seconds(one.seconds)]], found.mesh)) : null,
        found.mesh.length || found.banned.length ? section("Refused now", found.banned.length ? table("Peers that are cut off, with the reason", [["by", (one) => who(one.node)], ["peer", (one) => who(one.peer)], ["why", (one) => one.why, { left: true }], ["for another", (one) => seconds(one.seconds)]], found.banned) : el("p", { class: "quiet" }, "No peer is refused.")) : null,
        found.left.length ? section("Left lately", table("Peers that are gone, with the reason", [["node", (one) => who(one.node)], ["peer", (one) => who(one.peer)], ["why", (one) => one.why, { left: true }], ["ago", (one) => seconds(one.seconds)]], found.left)) : null,
        section("Cut off, dropped, unreachable", found.trouble.length ? table("Times, with the reason", [["what", (one) => one.cause], ["times", (one) => count(one.count)], ["why", (one) => explain(one.why, "bootnode"), { left: true }]], found.trouble) : el("p", { class: "quiet" }, "Nothing of the kind has happened."))),
    ];
  }

  const causes = (rows, none) => (rows.length ? table("Counts over all nodes and rounds", [["cause", (one) => explain(one.cause, "beacon")], ["count", (one) => count(one.count)]], rows) : el("p", { class: "quiet" }, none));

  // --- one node, or somebody who was heard: what all views have of it

  async function node(page) {
    const [now, lineage, trust] = await Promise.all([page.get("now"), page.get("lineage"), page.get("trust")]);
    const of = page.given.of, shown = Object.entries(now.people).find(([, author]) => author === of)?.[0];
    if (!shown) return el("p", { class: "lead" }, "There is nobody of that key here.");
    const own = now.nodes.find((one) => one.author === of), row = lineage.learners.findIndex((one) => one.author === of), column = lineage.authors.findIndex((one) => one.author === of);
    const total = (counts) => counts.reduce((a, b) => a + b, 0), audits = trust.nodes.find((one) => one.name === shown), about = trust.verdicts.filter((one) => one.about === shown);
    const from = row < 0 ? [] : lineage.authors.map((one, at) => ({ name: one.name, groups: lineage.counts[row][at], of: total(lineage.counts[row]), href: `#/lineage?node=${own.index}&author=${one.author}` })).filter((one) => one.groups);
    const to = column < 0 ? [] : lineage.learners.map((one, at) => ({ name: one.name, groups: lineage.counts[at][column], of: total(lineage.counts[at]), href: `#/lineage?node=${one.index}&author=${of}` })).filter((one) => one.groups);
    const shares = (caption, title, rows) => table(caption, [[title, (one) => who(one.name)], [term("group", "groups"), (one) => count(one.groups)], ["share", (one) => percent(one.groups / one.of)], ["", (one) => el("a", { href: one.href }, "read them")]], rows);
    return [
      el("p", { class: "lead" }, el("b", {}, who(shown)), own ? ` ${own.doing}.` : " is not one of the nodes here: what is known of it is what they heard."),
      el("p", { class: "quiet" }, "Public key ", el("span", { class: "hash wrap" }, of)),
      own ? el("dl", { class: "figures" }, figure("rounds", count(own.done)), figure([term("reward"), ", last ten rounds"], fixed(own.reward)), figure([term("held-out"), " accuracy"], percent(own.held_out)), figure("learned from peers", count(own.learned), "groups")) : null,
      own ? el("p", {}, el("a", { href: `#/round?node=${own.index}` }, "Its latest round, step by step")) : null,
      section("Whom it learned from", from.length ? shares(`Groups of peers that ${shown} learned from`, "author", from) : el("p", { class: "quiet" }, "From nobody that is known here.")),
      section("Whom it taught", to.length ? shares(`Groups of ${shown} that others learned from`, "learner", to) : el("p", { class: "quiet" }, "Nobody that is known here.")),
      section("Is it to be trusted?", el("p", {}, about.length ? `In the latest records are ${count(about.length)} verdicts about its groups: ${trust.findings.map((one) => [one, about.filter((said) => said.finding === one).length]).filter(([, times]) => times).map(([one, times]) => `${count(times)} ${one}`).join(", ")}. ` : "There is no verdict about its groups in the latest records. ",
        audits ? `It has itself checked ${count(audits.drawn)} groups of others, and answered ${count(audits.answered)}. ` : "", el("a", { href: "#/trust" }, "Trust"))),
    ];
  }

  return { now, learning, lineage, round, ledger, trust, network, node };
})();
