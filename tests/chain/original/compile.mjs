// Compiles the two stand-ins of the original's contracts with the coordinator's pinned solc, and prints their artifacts:
//   (cd rlswarm_jax/chain/contracts && npm ci) && node tests/chain/original/compile.mjs > tests/chain/original/artifacts.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const contracts = new URL("../../../rlswarm_jax/chain/contracts/", import.meta.url);
const solc = createRequire(new URL("compile.mjs", contracts))("solc");
const settings = JSON.parse(readFileSync(new URL("settings.json", contracts), "utf8"));

const artifacts = {};
for (const name of ["Original042", "Original060"]) {
  const sources = { [name]: { content: readFileSync(new URL(`${name}.sol`, import.meta.url), "utf8") } };
  const outputSelection = { "*": { "*": ["abi", "evm.bytecode.object", "evm.methodIdentifiers"] } };
  const input = { language: "Solidity", sources, settings: { ...settings, outputSelection } };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  for (const { formattedMessage } of output.errors ?? []) console.error(formattedMessage);
  if (output.errors?.length) process.exit(1);
  const { abi, evm } = output.contracts[name][name];
  artifacts[name] = { selectors: evm.methodIdentifiers, abi, bytecode: "0x" + evm.bytecode.object };
}
console.log(JSON.stringify(artifacts, null, 1));
