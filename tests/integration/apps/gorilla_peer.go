// The server of github.com/gorilla/websocket, for the same tests as the ones in peers.py. Its buffer is
// small, so that it sends everything longer in fragments.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

var pieces = []string{"The first piece, ", "", strings.Repeat("the second piece, ", 20), "and the last."}

func serve(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{EnableCompression: true, WriteBufferSize: 512}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetPongHandler(func(string) error {
		return conn.WriteMessage(websocket.TextMessage, []byte("ponged"))
	})
	soon := func() time.Time { return time.Now().Add(5 * time.Second) }
	for {
		kind, data, err := conn.ReadMessage()
		if err != nil {
			return
		}
		words := strings.SplitN(string(data), " ", 3)
		switch {
		case kind == websocket.TextMessage && words[0] == "/ping":
			conn.WriteControl(websocket.PingMessage, []byte("gorilla's"), soon())
		case kind == websocket.TextMessage && words[0] == "/fragments":
			writer, err := conn.NextWriter(websocket.TextMessage)
			if err != nil {
				return
			}
			for _, piece := range pieces {
				io.WriteString(writer, piece)
			}
			writer.Close()
		case kind == websocket.TextMessage && words[0] == "/end":
			conn.WriteControl(websocket.CloseMessage, nil, soon())
		case kind == websocket.TextMessage && words[0] == "/close":
			code, _ := strconv.Atoi(words[1])
			conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, words[2]), soon())
		default:
			if conn.WriteMessage(kind, data) != nil {
				return
			}
		}
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		bufio.NewReader(os.Stdin).ReadString(0)
		os.Exit(0)
	}()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, http.HandlerFunc(serve))
}
