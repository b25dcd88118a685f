// The server of `ws` from npm, for the same tests as the ones in peers.py. What is in the query of the URI
// are its options for permessage-deflate: `/?serverMaxWindowBits=9&clientNoContextTakeover=true`.
"use strict";
const http = require("http");
const { WebSocketServer } = require("ws");

const PIECES = ["The first piece, ", "", "the second piece, ".repeat(20), "and the last."];
const servers = new Map();

function serverFor(url) {
  const query = url.split("?")[1] || "";
  if (!servers.has(query)) {
    const options = { threshold: 0 };
    for (const [name, value] of new URLSearchParams(query)) {
      options[name] = JSON.parse(value);
    }
    const server = new WebSocketServer({ noServer: true, perMessageDeflate: options });
    server.on("connection", serve);
    servers.set(query, server);
  }
  return servers.get(query);
}

function serve(conn) {
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
    } else if (text === "/end") {
      conn.close();
    } else {
      const [, code, ...reason] = text.split(" ");
      conn.close(Number(code), reason.join(" "));
    }
  });
}

const listener = http.createServer();
listener.on("upgrade", (request, socket, head) => {
  const server = serverFor(request.url);
  server.handleUpgrade(request, socket, head, (conn) => server.emit("connection", conn, request));
});
listener.listen(0, "127.0.0.1", () => console.log(listener.address().port));

process.stdin.on("end", () => process.exit(0)).resume();
