// Sandwiches straight from a replica, with Node's own node:sqlite (Node 22.13 or later).
//
//     node node.mjs EXTENSION REPLICA_URL [TIME]

import { DatabaseSync } from "node:sqlite";

const [extension, replica, time = "5 seconds ago"] = process.argv.slice(2);
if (replica === undefined) {
  console.error("usage: node node.mjs EXTENSION REPLICA_URL [TIME]");
  process.exit(2);
}

// Loading it once, into any connection, makes the VFS known to every later connection of the process.
const withExtension = new DatabaseSync(":memory:", { allowExtension: true });
withExtension.loadExtension(extension);

const uri = `file:my.db?vfs=litestream&replica_url=${encodeURIComponent(replica)}`;
let db;
try {
  db = new DatabaseSync(uri, { allowExtension: true });
} catch (error) {
  // SQLite says no more than "unable to open database file"; any connection of the process knows why.
  const { reason } = withExtension.prepare("SELECT litestream_error() AS reason").get();
  console.error(`${error.message}: ${reason}`);
  process.exit(1);
}
withExtension.close();

const ratings = "SELECT id, sandwich, rating, tasted FROM sandwich_ratings ORDER BY id";

db.exec("BEGIN");
const rows = db.prepare(ratings).all();
const { txid } = db.prepare("SELECT litestream_txid() AS txid").get();
db.exec("COMMIT");
show(`latest ${txid}`, rows);

// The answer is the moment that was found. An impossible one is an error that says which are possible.
const [moment] = Object.values(db.prepare(`PRAGMA litestream_time = '${time.replaceAll("'", "''")}'`).get());
const then = db.prepare("SELECT litestream_txid() AS txid").get();
show(`at ${moment} ${then.txid}`, db.prepare(ratings).all());
db.close();

function show(title, rows) {
  console.log(title);
  for (const row of rows) console.log(Object.values(row).join("|"));
}
