// SPDX-License-Identifier: MIT
/**
 * Checks a JSON value against a schema type and returns a clean copy: only members that the schema
 * knows, integers as the schema's type says. The texts of refusals are those that QMP clients
 * know from QEMU and match on.
 */
import { checkBuiltin, convertKeyval } from './scalars.js';
import { jsonTypeOf, jsonTypeOfValue, membersOf, resolve } from './structure.js';
import type {
  AlternateType,
  AnyType,
  ArrayType,
  EnumType,
  Infer,
  JsonObject,
  JsonValue,
  Member,
  ObjectType,
  UnionType,
} from './types.js';

/** A value that the schema refuses; the message names the parameter. */
export class QapiInputError extends Error {
  override readonly name = 'QapiInputError';
}

export type ValidateOptions = {
  /** The value comes from a command line: every scalar is a string, and is converted. */
  readonly keyval?: boolean;
};

/** Where we are in the value; the text is only made when something is wrong. */
interface Place {
  readonly parent: Place | undefined;
  readonly step: string | number | undefined;
}
const ROOT: Place = { parent: undefined, step: undefined };

type Visit = { readonly keyval: boolean };

function refuse(text: string): never {
  throw new QapiInputError(text);
}

/** The full name of a place, as in 'file.filename' or 'actions[0].type'. */
function fullName(place: Place, keyval: boolean): string {
  let text = '';
  for (let at: Place | undefined = place; at !== undefined; at = at.parent) {
    if (typeof at.step === 'string') text = `.${at.step}${text}`;
    else if (at.step !== undefined) text = (keyval ? `.${at.step}` : `[${at.step}]`) + text;
  }
  if (text.startsWith('.')) text = text.slice(1);
  return text === '' ? '<anonymous>' : text;
}

/** The last step only: what messages about values (rather than types) name. */
function shortName(place: Place): string {
  return typeof place.step === 'string' ? place.step : 'null';
}

function wrongType(place: Place, visit: Visit, expected: string): never {
  refuse(`Invalid parameter type for '${fullName(place, visit.keyval)}', expected: ${expected}`);
}

function isObject(value: JsonValue): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function visitScalar(name: string, value: JsonValue, place: Place, visit: Visit): JsonValue {
  if (name === 'any') return value;
  if (visit.keyval && typeof value === 'object' && value !== null) {
    refuse(`Parameters '${fullName(place, true)}.*' are unexpected`);
  }
  const raw = visit.keyval && typeof value === 'string' ? convertKeyval(name, value) : value;
  const found = checkBuiltin(name, raw);
  if ('value' in found) return found.value;
  if ('expectedType' in found && !(visit.keyval && found.keyval !== undefined)) {
    wrongType(place, visit, found.expectedType);
  }
  const where = found.short === true ? shortName(place) : fullName(place, visit.keyval);
  const expects = visit.keyval && found.keyval !== undefined ? found.keyval : found.expects;
  return refuse(`Parameter '${where}' expects ${expects}`);
}

function visitEnum(type: EnumType, value: JsonValue, place: Place, visit: Visit): JsonValue {
  if (typeof value !== 'string') return visitScalar('str', value, place, visit);
  if (type.values.includes(value)) return value;
  return refuse(`Parameter '${shortName(place)}' does not accept value '${value}'`);
}

function visitArray(type: ArrayType, value: JsonValue, place: Place, visit: Visit): JsonValue {
  if (!Array.isArray(value)) wrongType(place, visit, 'array');
  const element = type.element as AnyType;
  return value.map((item: JsonValue, step: number) =>
    visitType(element, item, { parent: place, step }, visit),
  );
}

type MemberMap = ReadonlyMap<string, Member<AnyType>>;

/** Unexpected members that an error about a missing one names at most. */
const STRAYS_NAMED_MAX = 3;

/**
 * Who misspells a member that has to be there lacks it. So the error names what is there instead;
 * the rest is QEMU's text, which says no more than what is missing.
 */
function refuseMissing(place: Place, visit: Visit, strays: readonly string[]): never {
  const named = strays
    .slice(0, STRAYS_NAMED_MAX)
    .map((step) => `'${fullName({ parent: place.parent, step }, visit.keyval)}'`);
  const [is, parameter] = named.length > 1 ? ['are', 'parameters'] : ['is', 'parameter'];
  const hint = named.length > 0 ? ` (${parameter} ${named.join(', ')} ${is} unexpected)` : '';
  refuse(`Parameter '${fullName(place, visit.keyval)}' is missing${hint}`);
}

/** Names in `value` that `type` has no member for, whatever the discriminator may be or become. */
function straysOf(type: ObjectType, value: JsonObject, branch: MemberMap | undefined): string[] {
  const known = [membersOf(type)];
  if (branch !== undefined) known.push(branch);
  else if (type.kind === 'union') known.push(...Object.values(type.branches).map(membersOf));
  return Object.keys(value).filter((name) => !known.some((members) => members.has(name)));
}

interface ObjectVisit {
  readonly value: JsonObject;
  /** Gets the members that are right. */
  readonly result: Record<string, JsonValue>;
  readonly place: Place;
}

/** @param strays what is there besides, for the error about a member that is missing */
function visitMembers(
  members: MemberMap,
  { value, result, place }: ObjectVisit,
  visit: Visit,
  strays: () => readonly string[],
): void {
  for (const [name, member] of members) {
    const at: Place = { parent: place, step: name };
    const given = Object.hasOwn(value, name) ? value[name] : undefined;
    if (given !== undefined) {
      result[name] = visitType(member.type, given, at, visit);
    } else if (!member.optional) {
      refuseMissing(at, visit, strays());
    }
  }
}

/** The members that the value of the discriminator adds. */
function branchMembers(type: UnionType, tag: JsonValue | undefined): MemberMap | undefined {
  if (typeof tag !== 'string' || !Object.hasOwn(type.branches, tag)) return undefined;
  const branch = type.branches[tag];
  return branch && membersOf(branch);
}

function visitObject(type: ObjectType, value: JsonValue, place: Place, visit: Visit): JsonObject {
  if (!isObject(value)) wrongType(place, visit, 'object');
  const result: Record<string, JsonValue> = {};
  const members = membersOf(type);
  const object = { value, result, place };
  visitMembers(members, object, visit, () => straysOf(type, value, undefined));
  const branch =
    type.kind === 'union' ? branchMembers(type, result[type.discriminator]) : undefined;
  if (branch !== undefined) {
    visitMembers(branch, object, visit, () => straysOf(type, value, branch));
  }
  for (const [name, given] of Object.entries(value)) {
    // A member that is present but undefined comes from our own results and means absent.
    if (given === undefined || members.has(name) || branch?.has(name) === true) continue;
    const at: Place = { parent: place, step: name };
    refuse(`Parameter '${fullName(at, visit.keyval)}' is unexpected`);
  }
  return result;
}

function visitAlternate(
  type: AlternateType,
  value: JsonValue,
  place: Place,
  visit: Visit,
): JsonValue {
  const found = jsonTypeOfValue(value);
  for (const branch of Object.values(type.branches) as AnyType[]) {
    const expected = jsonTypeOf(branch);
    if (expected === found || (expected === 'int' && found === 'number')) {
      return visitType(branch, value, place, visit);
    }
  }
  return refuse(`Invalid parameter type for '${shortName(place)}', expected: ${type.name}`);
}

function visitType(type: AnyType, value: JsonValue, place: Place, visit: Visit): JsonValue {
  const resolved = resolve(type);
  switch (resolved.kind) {
    case 'builtin':
      return visitScalar(resolved.name, value, place, visit);
    case 'enum':
      return visitEnum(resolved, value, place, visit);
    case 'array':
      return visitArray(resolved, value, place, visit);
    case 'alternate':
      return visitAlternate(resolved, value, place, visit);
    default:
      return visitObject(resolved, value, place, visit);
  }
}

/**
 * Checks `value` against `type` and returns a copy that has its TypeScript type.
 *
 * @throws {QapiInputError} it does not fit; the message names the member and says why
 */
export function validate<const T extends AnyType>(
  type: T,
  value: JsonValue,
  options: ValidateOptions = {},
): Infer<T> {
  return visitType(type, value, ROOT, { keyval: options.keyval === true }) as Infer<T>;
}
