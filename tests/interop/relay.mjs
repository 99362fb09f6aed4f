// The proofs of more than one hop: docs/federation/relays.md. Values in, values out.

import { Refused, authenticate, bytesToHex, idOf, inspect, localId, sha } from "./cose.mjs";
import { WEEK, isPublicKey } from "./cose.mjs";
import { SIZES, parse } from "./messages.mjs";

const TOLERANCE = 82_800; // seconds between the clocks of two colonies

const require = (holds, code, why) => {
  if (!holds) throw new Refused(code, why);
};

/**
 * Check the way of a submission to here. `mine` are the ids of this colony. Returns the innermost
 * submission, and SHA-256 and issuer of its envelope. Throws Refused: hops, loop, bad_path.
 */
export function checkWay(envelope, submit, mine) {
  const { hops, path } = submit;
  require(hops >= 1 && hops <= 4 && hops > path.length, "hops", "more hops than allowed");
  const colonies = [...path, envelope.issuer];
  require(!colonies.some((each) => mine.includes(each)), "loop", "it was here before");
  require(new Set(colonies).size === colonies.length, "loop", "twice at a colony");
  try {
    return descend(envelope, submit);
  } catch (error) {
    if (error instanceof Refused) throw new Refused("bad_path", error.message);
    throw error;
  }
}

function descend(outer, submit) {
  const keys = keyring(submit.keys);
  for (;;) {
    const onward = submit.path.length > 0;
    require(onward === (submit.spec.length === 0), "bad_path", "a path and a spec, or neither");
    require(onward === submit.inner.length > 0, "bad_path", "a path without its proof");
    if (!onward) return { core: submit, asked: sha(outer.bytes), origin: outer.issuer };
    require(submit.inner.length <= outer.bytes.length, "bad_path", "the inner one is larger");
    const inner = inspect(submit.inner);
    const before = submit.path.at(-1);
    require(inner.issuer === before, "bad_path", "signed by another colony than the path's");
    require(inner.audience === outer.issuer, "bad_path", "meant for another relay");
    authenticate(inner, "submit", keys.get(inner.issuer), { guess: false });
    const told = parse("submit", inner.payload);
    const same = told.path.length === submit.path.length - 1;
    require(same && told.path.every((id, at) => id === submit.path[at]), "bad_path", "the path");
    require(told.hops === submit.hops, "bad_path", "another number of hops");
    const named = localId(inner.issuer, told.pid, told.attempt);
    require(submit.pid === named, "bad_path", "about another process");
    require(inner.expires - inner.issued <= WEEK, "bad_path", "it lives too long");
    require(inner.expires >= outer.expires - TOLERANCE, "bad_path", "it ended before");
    [outer, submit] = [inner, told];
  }
}

function keyring(keys) {
  return new Map(keys.filter(isPublicKey).map((key) => [idOf(key), key]));
}

/**
 * Check a chain of outcomes, and return the innermost one, with `signers` from the outside in.
 * `peer` is the peer's {id, key}; `mine` our ids; `asked` and `origin` name our submission, `pid` and
 * `attempt` our process. `wanted` are the colonies of the target beyond the peer, `known` the ids that
 * we trust under a name. Throws Refused: bad_chain.
 */
export function checkChain(bytes, { peer, mine, asked, origin, wanted = [], known = {}, ...ours }) {
  const signers = [];
  let keys = new Map([[peer.id, peer.key]]);
  let above = null;
  let first = null;
  for (let current = bytes; current.length; ) {
    require(signers.length < 4, "bad_chain", "more than four colonies");
    const envelope = inspect(current);
    const { issuer } = envelope;
    require(above || issuer === peer.id, "bad_chain", "not signed by the peer");
    require(!signers.includes(issuer) && !mine.includes(issuer), "bad_chain", "signed twice");
    authenticate(envelope, "outcome", keys.get(issuer), { guess: false });
    const told = parse("outcome", envelope.payload);
    const audience = above ? [signers.at(-1)] : mine;
    require(audience.includes(envelope.audience), "bad_chain", "meant for another colony");
    require(bytesToHex(told.asked) === asked, "bad_chain", "it answers another submission");
    require(told.origin === origin, "bad_chain", "it names another origin");
    const named = localId(envelope.audience, told.pid, told.attempt);
    require(told.localpid === named, "bad_chain", "about another process");
    if (above) {
      require(told.pid === above.localpid, "bad_chain", "about another process than above");
      require(told.state === above.state, "bad_chain", "another end than above");
      const errors = JSON.stringify(told.errors) === JSON.stringify(above.errors);
      require(errors, "bad_chain", "other errors than above");
      const same = !above.out.length || !Buffer.compare(above.out, told.out);
      require(same, "bad_chain", "another output than above");
    } else {
      first = told;
      keys = keyring(told.keys);
    }
    signers.push(issuer);
    [above, current] = [told, told.below];
  }
  if ("pid" in ours) {
    const fits = first.pid === ours.pid && first.attempt === ours.attempt;
    require(fits, "bad_chain", "about another attempt");
  }
  if (above.state === 2) {
    require(signers.length > wanted.length, "bad_chain", "not from as far as the target names");
    wanted.forEach((word, at) => {
      const ids = /^[0-9a-f]{64}$/.test(word) ? [word] : known[word];
      require(!ids || ids.includes(signers[at + 1]), "bad_chain", `not signed by ${word}`);
    });
  }
  return { outcome: above, signers };
}

export const OUTCOME_LIMIT = SIZES.outcome[0];
