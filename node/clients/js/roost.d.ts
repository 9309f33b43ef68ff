/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A place in a group: offsets count from 1 within an epoch, which changes when the group's messages were lost. */
export interface Position {
  epoch: string;
  offset: number;
}

export interface Options {
  /** Nodes of the cluster, as `https://roost.example.com`. The first is one by chance, the next one follows when it fails. Default: the node that served this file. */
  urls?: string | string[];
  /** The session's token, as the backend got it, or a JWT that the backend made. Without it, and without `getToken`: the session of the cookie, or a new anonymous one where the cluster allows that. */
  token?: string;
  /**
   * Asked for a token at first and each time the session is over, and for a later JWT before one expires. `undefined` ends the
   * connection, or leaves it to expire. One that throws is asked again.
   */
  getToken?: () => string | undefined | Promise<string | undefined>;
  /** Keeps token, client and positions over a reload: `sessionStorage`. Default: nothing is kept. */
  storage?: Pick<Storage, "getItem" | "setItem" | "removeItem">;
  /** Which client of its session this is, 1 to 64 visible characters: a later connection of the same client takes the place of the earlier one. Default: one of its own, kept in `storage`. */
  client?: string;
  /** Under which name. Name the user in it where users change within a tab. Default: `roost`. */
  storageKey?: string;
  /** The WebSocket to use where there is no global one: that of `ws` on Node 20. */
  WebSocket?: new (url: string) => WebSocketLike;
}

/** What is used of a WebSocket. */
export interface WebSocketLike {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(): void;
}

/** Why something was refused, or the connection is over. */
export class RoostError extends Error {
  constructor(code: string, message: string, unsure?: boolean, detail?: Detail[]);
  /** For programs: `forbidden`, `displaced`, … */
  readonly code: string;
  /** An earlier attempt of the same request may have been carried out. */
  readonly unsure: boolean;
  /** What is wrong with the request. */
  readonly detail: Detail[];
}

export interface Detail {
  loc: string[];
  msg: string;
  type: string;
}

/** Opens a connection and keeps it up until `close`, or until the server says that coming back makes no sense. */
export function connect(options?: Options): Connection;

/** `connecting`; `connected`; `waiting` before it tries again; `ended`, for good. */
export type State = "connecting" | "connected" | "waiting" | "ended";

export interface ConnectionEvents {
  /** The state has changed. */
  state: State;
  /** An error that answers no request, or what `getToken` threw. The connection goes on. */
  error: unknown;
  /** What a backend has sent to this client alone. */
  direct: any;
}

export interface Connection {
  readonly state: State;
  /** Why the connection has ended. */
  readonly ended: RoostError | undefined;
  /** The session's id, its user (empty: nobody in particular), and the node that it is at, since it was connected first. */
  readonly session: string | undefined;
  readonly user: string | undefined;
  readonly node: string | undefined;
  /** Always the same one for the same name. */
  group(name: string): Group;
  on<E extends keyof ConnectionEvents>(event: E, listener: (value: ConnectionEvents[E]) => void): this;
  off<E extends keyof ConnectionEvents>(event: E, listener: (value: ConnectionEvents[E]) => void): this;
  /** Ends it. What is under way is rejected with the code `closed`. */
  close(): void;
}

export interface Message extends Position {
  group: string;
  data: any;
  /** Not there for what a backend has published. */
  from?: { session: string; user: string };
  at_ms: number;
  ephemeral?: undefined;
}

/** A message that is kept nowhere, and has no place in the group: it may be lost, and moves no position. */
export type EphemeralMessage = Omit<Message, "epoch" | "offset" | "ephemeral"> & { ephemeral: true; epoch?: undefined; offset?: undefined };

export interface Member {
  session: string;
  user: string;
  info: any;
}

export interface GroupEvents {
  /** A message; each once, in order. Of those that are `ephemeral` some may be lost. */
  message: Message | EphemeralMessage;
  /** The messages `from` to `to` are not to be had any more. */
  gap: { group: string; epoch: string; from: number; to: number; reason: string };
  /** The group begins anew after this position: messages may be lost. */
  reset: Position & { group: string; reason: string };
  /** What was told may not be all: the group cannot be heard at the moment. */
  stale: { group: string };
  /** It is heard again, and nothing up to here is missing. */
  live: Position & { group: string };
  /** Somebody came (`join`), went (`leave`), or has other attributes (`update`). */
  member: Member & { group: string; event: "join" | "leave" | "update" };
  /** How many are there, where the namespace tells that instead: sessions, different users, sessions without a user. */
  presence: { group: string; sessions: number; users: number; anonymous: number };
  /** Joined, for the first time or again; with `recovered` everything since the last position follows. */
  joined: Position & { group: string; recovered: boolean };
  /** Left; with a `reason` where nobody here asked for it. */
  left: { group: string; reason?: string };
}

export interface Group {
  readonly name: string;
  /** Up to where messages were told. Save it with what they came to, and give it to `join` as `since`. */
  readonly position: Position | undefined;
  on<E extends keyof GroupEvents>(event: E, listener: (value: GroupEvents[E]) => void): this;
  off<E extends keyof GroupEvents>(event: E, listener: (value: GroupEvents[E]) => void): this;
  /** Joins and stays, over all reconnects, until `leave`. With `since`, or a position that was kept, what came after it follows. */
  join(options?: { since?: Position }): Promise<Position & { group: string; recovered: boolean }>;
  leave(): Promise<void>;
  /**
   * Publishes once: repeated with the same key, over reconnects, until its outcome is known. Of publishes that are under way at
   * once one that had to be repeated may come after the others; await one before the next where that matters.
   */
  publish(data: Json, options?: { key?: string; ephemeral?: false }): Promise<Position & { copies: number }>;
  /** Tells those who are there now, and is kept nowhere: for typing indicators and cursors. Sent once, or not at all without a connection. */
  publish(data: Json, options: { ephemeral: true }): Promise<void>;
  /** Messages after `since`, or from the oldest that is kept on, at most `limit` (1 to 1000, else 100); or the `last` ones (1 to 1000): the newest of them that fit in an answer. */
  history(options?: { since?: Position; limit?: number; last?: undefined } | { last: number }): Promise<{
    epoch: string | null;
    offset: number;
    /** Nothing is missing between `since` and the first message; with `last`, none of so many was left out. */
    complete: boolean;
    messages: Omit<Message, "group" | "epoch" | "ephemeral">[];
  }>;
  /** Who is present, a page at a time: `after` is the last session of the page before. */
  members(options?: { after?: string; limit?: number }): Promise<{ members: Member[]; more: boolean }>;
}
