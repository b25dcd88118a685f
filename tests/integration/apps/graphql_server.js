// The server of graphql-ws from npm, which speaks graphql-transport-ws. It pings each connection inside the
// protocol, at any time, and `{ seen { … } }` says what it has seen. The first line of output is the port; the
// end of the input is the end of the process.
"use strict";
const http = require("http");
const { buildSchema } = require("graphql");
const { useServer } = require("graphql-ws/use/ws");
const { WebSocketServer } = require("ws");

const PING_EVERY = 20; // ms

const schema = buildSchema(`
  type Seen { connections: Int!, refused: Int!, pings: Int!, pongs: Int!, wrongPongs: Int!, counting: Int!, behind: [Int!]! }
  type Query {
    double(n: Int!): Int!
    half(n: Int!): Int
    seen: Seen!
  }
  type Subscription {
    count(from: Int!, to: Int, breakAt: Int): Int!
  }
`);

const seen = { connections: 0, refused: 0, pings: 0, pongs: 0, wrongPongs: 0, counting: 0 };
const behind = new Map(); // pings that wait for their pong, on each open connection
const turn = () => new Promise((resolve) => setTimeout(resolve, 1));

const root = {
  double: ({ n }) => 2 * n,
  half: ({ n }) => {
    if (n % 2) throw new Error(`${n} is odd`);
    return n / 2;
  },
  seen: () => ({ ...seen, behind: [...behind.values()] }),
  count: async function* ({ from, to, breakAt }) {
    seen.counting += 1;
    try {
      for (let n = from; to == null || n < to; n += 1) {
        if (n === breakAt) throw new Error(`broken at ${n}`);
        yield { count: n };
        await turn();
      }
    } finally {
      seen.counting -= 1;
    }
  },
};

function ping(socket) {
  let number = 0;
  behind.set(socket, 0);
  const timer = setInterval(() => {
    if (socket.readyState !== 1) return;
    seen.pings += 1;
    behind.set(socket, behind.get(socket) + 1);
    socket.send(JSON.stringify({ type: "ping", payload: { number: number++ } }));
  }, PING_EVERY);
  let expected = 0;
  socket.on("message", (data) => {
    const message = JSON.parse(data);
    if (message.type !== "pong") return;
    seen.pongs += 1;
    behind.set(socket, behind.get(socket) - 1);
    if (!message.payload || message.payload.number !== expected) seen.wrongPongs += 1;
    expected += 1;
  });
  socket.on("close", () => {
    clearInterval(timer);
    behind.delete(socket);
  });
}

const server = http.createServer();
const sockets = new WebSocketServer({ server, path: "/graphql" });
useServer(
  {
    schema,
    roots: { query: root, subscription: root },
    onConnect: ({ connectionParams, extra }) => {
      if (!connectionParams || connectionParams.token !== "right") {
        seen.refused += 1;
        return false;
      }
      seen.connections += 1;
      ping(extra.socket);
      return true;
    },
  },
  sockets,
);
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
