// What this page offers to its colony. The worker itself is the package's.

import * as colonyd from "./colonies.js";

/** The functions that this page offers: name → function of (args, context), giving the output. In
 * a workflow the outputs of the nodes before stand behind the own arguments. */
export const FUNCTIONS = {
  helloworld: ([who = "world"]) => `Hello, ${who}!`,
  upper: (texts) => texts.map((text) => text.toUpperCase()),
};

export class Worker extends colonyd.Worker {
  /**
   * `settings`: {colony, name, type, poll}. `owner`, if given, is the identity of the colony's owner; it
   * signs the registration, once, and is forgotten. `report(state, text)` hears of all that happens.
   */
  constructor(client, identity, settings, report, owner = null) {
    super(client, { ...settings, identity, report, owner, functions: FUNCTIONS });
  }
}
