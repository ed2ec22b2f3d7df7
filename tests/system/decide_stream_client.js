// A client of VerdictService.DecideStream in another language, written from the comments of verdict_service.proto alone.
//
//   node decide_stream_client.js PROTO_FOLDER ADDRESS SERVER SERVER_ADDRESS REMOTE_ADDRESS
//
// Sends one batch for SERVER and prints what came back as one line of JSON.
"use strict";

const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [protoFolder, address, server, local, remote] = process.argv.slice(2);
const INGRESS = 1, EGRESS = 2, ICMP = 1, TCP = 6, UDP = 17, SYN = 2, ACK = 16;

function connect() {
  const options = { keepCase: true, includeDirs: [protoFolder] };
  const loaded = protoLoader.loadSync("secgroups/v1/verdict_service.proto", options);
  const { VerdictService } = grpc.loadPackageDefinition(loaded).secgroups.v1;
  return new VerdictService(address, grpc.credentials.createInsecure());
}

// 16 bytes: ::ffff:a.b.c.d
function writeIpv4(buffer, at, text) {
  buffer.writeUInt16BE(0xffff, at + 10);
  text.split(".").forEach((part, number) => buffer.writeUInt8(Number(part), at + 12 + number));
}

function record(handle, packet) {
  const buffer = Buffer.alloc(64);
  writeIpv4(buffer, 0, packet.source);
  writeIpv4(buffer, 16, packet.destination);
  buffer.writeUInt32LE(handle, 32);
  buffer.writeUInt16LE(packet.sourcePort || 0, 36);
  buffer.writeUInt16LE(packet.destinationPort || 0, 38);
  buffer.writeUInt8(packet.protocol, 40);
  buffer.writeUInt8(4, 41);
  buffer.writeUInt8(packet.direction, 42);
  buffer.writeUInt8(packet.tcpFlags || 0, 43);
  buffer.writeUInt8(packet.icmpType || 0, 44);
  buffer.writeUInt8(packet.icmpCode || 0, 45);
  buffer.writeUInt16LE(packet.icmpId || 0, 46);
  buffer.writeUInt8(packet.fragment || 0, 48);
  buffer.writeUInt32LE(packet.fragmentId || 0, 52);
  buffer.writeUInt32LE(packet.length || 0, 56);
  buffer.writeUInt32LE(packet.quote || 0, 60);
  return buffer;
}

function quote(packet) {
  const buffer = Buffer.alloc(48);
  writeIpv4(buffer, 0, packet.source);
  writeIpv4(buffer, 16, packet.destination);
  buffer.writeUInt16LE(packet.sourcePort, 32);
  buffer.writeUInt16LE(packet.destinationPort, 34);
  buffer.writeUInt8(packet.protocol, 36);
  buffer.writeUInt8(4, 37);
  return buffer;
}

const arriving = { direction: INGRESS, source: remote, destination: local };
const leaving = { direction: EGRESS, source: local, destination: remote };
const syn = { ...arriving, protocol: TCP, sourcePort: 40000, destinationPort: 22, tcpFlags: SYN, length: 60 };
const synAck = { ...leaving, protocol: TCP, sourcePort: 22, destinationPort: 40000, tcpFlags: SYN | ACK, length: 60 };
const dns = { ...leaving, protocol: UDP, sourcePort: 5353, destinationPort: 53, fragmentId: 0xa1b2c3d4, length: 1500 };
const packets = {
  syn,
  answer: synAck,
  "other port": { ...syn, destinationPort: 23 },
  "forged source": { ...dns, source: remote, destination: local },
  "error about the answer": { ...arriving, protocol: ICMP, icmpType: 3, icmpCode: 1, quote: 1 },
  "error without a quote": { ...arriving, protocol: ICMP, icmpType: 3, icmpCode: 1 },
  "first fragment": { ...dns, fragment: 1 },
  "later fragment": { ...dns, sourcePort: 0, destinationPort: 0, fragment: 2 },
  "fragment of nothing": { ...dns, sourcePort: 0, destinationPort: 0, fragment: 2, fragmentId: 1 },
  "no direction": { ...syn, direction: 0 },
};

// Resolves to the response to one request.
function ask(stream, request) {
  return new Promise((resolve, reject) => {
    stream.once("error", reject);
    stream.once("data", (response) => {
      stream.removeListener("error", reject);
      resolve(response);
    });
    stream.write(request);
  });
}

async function main() {
  const client = connect();
  const stream = client.DecideStream();
  const named = await ask(stream, { servers: [server, "nobody/knows"] });
  const [handle, unknown] = named.server_handles;
  const records = Object.values(packets).map((packet) => record(handle, packet));
  records.push(record(unknown, syn));
  const response = await ask(stream, { records: Buffer.concat(records), quotes: quote(synAck) });
  stream.end();

  const rules = Object.fromEntries(response.rules.map((rule) => [rule.handle, rule.rule_id]));
  const names = [...Object.keys(packets), "unknown server"];
  const verdicts = names.map((name, number) => {
    const at = number * 8;
    const rule = response.verdicts.readUInt32LE(at + 4);
    return [name, ...response.verdicts.subarray(at, at + 4), rule === 0 ? "" : rules[rule]];
  });
  const refused = await ask(client.DecideStream(), { records: Buffer.alloc(65) }).catch((error) => error);
  console.log(JSON.stringify({ handles: [handle, unknown], verdicts, refused: [refused.code, refused.details] }));
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
