// The server of nhooyr.io/websocket, for the same tests as the ones in peers.py. `/?takeover` keeps the
// context between messages.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"nhooyr.io/websocket"
)

var pieces = []string{"The first piece, ", "", strings.Repeat("the second piece, ", 20), "and the last."}

func serve(w http.ResponseWriter, r *http.Request) {
	mode := websocket.CompressionNoContextTakeover
	if r.URL.Query().Has("takeover") {
		mode = websocket.CompressionContextTakeover
	}
	options := websocket.AcceptOptions{CompressionMode: mode, CompressionThreshold: 1}
	conn, err := websocket.Accept(w, r, &options)
	if err != nil {
		return
	}
	conn.SetReadLimit(16 << 20)
	ctx := context.Background()
	for {
		kind, data, err := conn.Read(ctx)
		if err != nil {
			return
		}
		words := strings.SplitN(string(data), " ", 3)
		switch {
		case kind == websocket.MessageText && words[0] == "/ping":
			go func() {
				if conn.Ping(ctx) == nil {
					conn.Write(ctx, websocket.MessageText, []byte("ponged"))
				}
			}()
		case kind == websocket.MessageText && words[0] == "/fragments":
			writer, err := conn.Writer(ctx, websocket.MessageText)
			if err != nil {
				return
			}
			for _, piece := range pieces {
				io.WriteString(writer, piece)
			}
			writer.Close()
		case kind == websocket.MessageText && words[0] == "/end":
			conn.Close(websocket.StatusNoStatusRcvd, "")
			return
		case kind == websocket.MessageText && words[0] == "/close":
			code, _ := strconv.Atoi(words[1])
			conn.Close(websocket.StatusCode(code), words[2])
			return
		default:
			if conn.Write(ctx, kind, data) != nil {
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
