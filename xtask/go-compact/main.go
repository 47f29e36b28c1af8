// Merges LTX files as Litestream 0.5.17 does: with the compactor of its format library, which decodes every page and encodes it again.
//
//	go-compact OUTPUT INPUT...
//
// Prints how many nanoseconds that took. Reads through buffers, which Litestream itself does without.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/superfly/ltx"
)

const bufferSize = 64 << 10

func main() {
	if len(os.Args) < 3 {
		fail(errors.New("usage: go-compact OUTPUT INPUT..."))
	}
	elapsed, err := compact(os.Args[1], os.Args[2:])
	if err != nil {
		fail(err)
	}
	fmt.Println(elapsed.Nanoseconds())
}

func compact(output string, inputs []string) (time.Duration, error) {
	start := time.Now()
	readers := make([]io.Reader, len(inputs))
	for i, input := range inputs {
		file, err := os.Open(input)
		if err != nil {
			return 0, err
		}
		defer file.Close()
		readers[i] = bufio.NewReaderSize(file, bufferSize)
	}
	file, err := os.Create(output)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	writer := bufio.NewWriterSize(file, bufferSize)
	compactor, err := ltx.NewCompactor(writer, readers)
	if err != nil {
		return 0, err
	}
	compactor.HeaderFlags = ltx.HeaderFlagNoChecksum
	if err := compactor.Compact(context.Background()); err != nil {
		return 0, err
	}
	if err := writer.Flush(); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "go-compact:", err)
	os.Exit(1)
}
