// The server of `ws` from npm, for the same tests as the ones in peers.py.
"use strict";
const { WebSocketServer } = require("ws");

const PIECES = ["The first piece, ", "", "the second piece, ".repeat(20), "and the last."];
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: { threshold: 0 } }, () =>
  console.log(server.address().port),
);

server.on("connection", (conn) => {
  conn.on("message", (data, isBinary) => {
    const text = isBinary ? "" : data.toString();
    if (!text.startsWith("/")) {
      conn.send(data, { binary: isBinary });
    } else if (text === "/view") {
      conn.send(JSON.stringify(conn.extensions ? conn.extensions.split(",") : []));
    } else if (text === "/ping") {
      conn.once("pong", () => conn.send("ponged"));
      conn.ping("ws'");
    } else if (text === "/fragments") {
      PIECES.forEach((piece, i) => {
        conn.send(piece, { fin: i === PIECES.length - 1 });
        conn.ping();
      });
    } else {
      const [, code, ...reason] = text.split(" ");
      conn.close(Number(code), reason.join(" "));
    }
  });
});

process.stdin.on("end", () => process.exit(0)).resume();
