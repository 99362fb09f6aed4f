/** The calls that upstream's first JavaScript library had. */

export const input: 0;
export const output: 1;
export const error: 2;
export const environment: 3;

export interface OldAttribute {
  targetid: string;
  targetcolonyid?: string;
  attributetype?: number | string;
  key: string;
  value: string;
  [name: string]: unknown;
}

export class ColonyRuntime {
  /** `colony` is the name of the colony ("dev"): today's servers know colonies by name. */
  constructor(host: string, port: string | number, options?: { colony?: string; tls?: boolean });
  load(): Promise<void>;
  assign(colonyid: string, prvkey: string): Promise<any>;
  assignLatest(colonyid: string, prvkey: string): Promise<any>;
  getColony(colonyid: string, prvkey: string): Promise<any>;
  getColonies(prvkey: string): Promise<any>;
  getProcess(processid: string, prvkey: string): Promise<any>;
  submitProcessSpec(spec: object, prvkey: string): Promise<any>;
  addAttribute(attribute: OldAttribute, prvkey: string): Promise<any>;
  closeProcess(processid: string, successful: boolean, prvkey: string): Promise<any>;
  subscribeProcesses(
    runtimetype: string,
    timeout: number,
    state: number,
    prvkey: string,
    callback: (process: any) => void,
  ): Promise<never>;
}
