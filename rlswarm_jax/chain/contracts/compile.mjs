// Compiles a contract with the pinned solc and prints the artifact that the package ships: `make contracts`.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const solc = createRequire(import.meta.url)("solc");
const read = (name) => readFileSync(fileURLToPath(new URL(name, import.meta.url)), "utf8");

const contract = process.argv[2]; // Coordinator, or Court, which knows the other
const file = `${contract}.sol`;
const names = contract === "Court" ? ["Coordinator.sol", file] : [file];
const sources = Object.fromEntries(names.map((name) => [name, { content: read(name) }]));
const settings = JSON.parse(read("settings.json"));
const outputSelection = { [file]: { [contract]: ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } };
const input = { language: "Solidity", sources, settings: { ...settings, outputSelection } };
const output = JSON.parse(solc.compile(JSON.stringify(input)));

for (const { formattedMessage } of output.errors ?? []) console.error(formattedMessage);
if (output.errors?.length) process.exit(1); // a warning, too

const { abi, evm } = output.contracts[file][contract];
const size = evm.deployedBytecode.object.length / 2;
if (size > 24576) {
  console.error(`the contract takes ${size} bytes, but a chain takes 24576 at most (EIP-170)`);
  process.exit(1);
}
const sha256 = Object.fromEntries(
  names.map((name) => [name, createHash("sha256").update(sources[name].content).digest("hex")]),
);
const artifact = {
  contract,
  compiler: solc.version(),
  settings,
  sha256,
  abi,
  bytecode: "0x" + evm.bytecode.object,
  runtime_bytecode: "0x" + evm.deployedBytecode.object,
};
console.log(JSON.stringify(artifact, null, 1));
