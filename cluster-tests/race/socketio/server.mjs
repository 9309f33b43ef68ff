// A server on Socket.IO 4 with its own adapter (one process, memory), WebSocket alone: `node server.mjs PORT`.

import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, { transports: ["websocket"], serveClient: false });

io.on("connection", (socket) => {
  socket.on("join", async (group, answer) => {
    await socket.join(group);
    answer();
  });
  socket.on("pub", (group, data, answer) => {
    io.to(group).emit("m", data);
    answer();
  });
});
http.listen(Number(process.argv[2]), "127.0.0.1");
