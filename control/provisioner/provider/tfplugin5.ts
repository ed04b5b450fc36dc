// The messages of Terraform's plugin protocol 5 (service tfplugin5.Provider) that this provider reads or writes.
// Schemas nest, and are only ever written, so a block is encoded by hand into bytes and embedded as such.
import { bool, bytes, bytesMap, int, message, nested, repeated, repeatedBytes, string } from "./protobuf.ts";

export const DynamicValue = message({ msgpack: bytes(1), json: bytes(2) });

/** One of {attribute_name 1, element_key_string 2, element_key_int 3}; we need the first and the last. */
const AttributeStep = message({ attributeName: string(1) });
const IndexStep = message({ elementKeyInt: int(3) });
const AttributePath = message({ steps: repeatedBytes(1) });

export const SEVERITY_ERROR = 1;
export const SEVERITY_WARNING = 2;
export const Diagnostic = message({
  severity: int(1),
  summary: string(2),
  detail: string(3),
  attribute: bytes(4),
});

/** Encodes a path to an attribute, block or element: names and list indexes from the top. */
export function attributePath(path: readonly (string | number)[]): Uint8Array {
  return AttributePath.encode({
    steps: path.map((step) => {
      if (typeof step === "string") return AttributeStep.encode({ attributeName: step });
      // The steps are a oneof: presence counts, so 0 must be written although proto3 leaves zeros out.
      return step === 0 ? Uint8Array.of(3 << 3, 0) : IndexStep.encode({ elementKeyInt: step });
    }),
  });
}

export const NESTING_LIST = 2;
export const NESTING_SET = 3;

export const Attribute = message({
  name: string(1),
  type: bytes(2),
  description: string(3),
  required: bool(4),
  optional: bool(5),
  computed: bool(6),
  sensitive: bool(7),
  deprecated: bool(9),
});
export const NestedBlock = message({
  typeName: string(1),
  block: bytes(2),
  nesting: int(3),
  minItems: int(4),
  maxItems: int(5),
});
export const Block = message({ attributes: repeated(2, Attribute), blockTypes: repeated(3, NestedBlock) });
export const Schema = message({ version: int(1), block: bytes(2) });

const Capabilities = message({
  planDestroy: bool(1),
  getProviderSchemaOptional: bool(2),
  moveState: bool(3),
});
export const GetSchemaResponse = message({
  provider: bytes(1),
  resourceSchemas: bytesMap(2),
  dataSourceSchemas: bytesMap(3),
  diagnostics: repeated(4, Diagnostic),
  capabilities: nested(6, Capabilities),
});

export const PrepareRequest = message({ config: nested(1, DynamicValue) });
export const PrepareResponse = message({
  preparedConfig: nested(1, DynamicValue),
  diagnostics: repeated(2, Diagnostic),
});

export const ConfigureRequest = message({ terraformVersion: string(1), config: nested(2, DynamicValue) });
export const ValidateRequest = message({ typeName: string(1), config: nested(2, DynamicValue) });
/** The response of Configure, ValidateResourceTypeConfig and ValidateDataSourceConfig. */
export const DiagnosticsResponse = message({ diagnostics: repeated(1, Diagnostic) });

const RawState = message({ json: bytes(1) });
export const UpgradeRequest = message({
  typeName: string(1),
  version: int(2),
  rawState: nested(3, RawState),
});
export const UpgradeResponse = message({
  upgradedState: nested(1, DynamicValue),
  diagnostics: repeated(2, Diagnostic),
});

export const ReadResourceRequest = message({
  typeName: string(1),
  currentState: nested(2, DynamicValue),
  private: bytes(3),
});
export const ReadResourceResponse = message({
  newState: nested(1, DynamicValue),
  diagnostics: repeated(2, Diagnostic),
  private: bytes(3),
});

export const PlanRequest = message({
  typeName: string(1),
  priorState: nested(2, DynamicValue),
  proposedNewState: nested(3, DynamicValue),
  config: nested(4, DynamicValue),
  priorPrivate: bytes(5),
});
export const PlanResponse = message({
  plannedState: nested(1, DynamicValue),
  requiresReplace: repeatedBytes(2),
  plannedPrivate: bytes(3),
  diagnostics: repeated(4, Diagnostic),
});

export const ApplyRequest = message({
  typeName: string(1),
  priorState: nested(2, DynamicValue),
  plannedState: nested(3, DynamicValue),
  config: nested(4, DynamicValue),
  plannedPrivate: bytes(5),
});
export const ApplyResponse = message({
  newState: nested(1, DynamicValue),
  private: bytes(2),
  diagnostics: repeated(3, Diagnostic),
});

export const ReadDataSourceRequest = message({ typeName: string(1), config: nested(2, DynamicValue) });
export const ReadDataSourceResponse = message({
  state: nested(1, DynamicValue),
  diagnostics: repeated(2, Diagnostic),
});

export const ImportRequest = message({ typeName: string(1), id: string(2) });
export const ImportResponse = message({ diagnostics: repeated(2, Diagnostic) });
