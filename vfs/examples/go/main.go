// Sandwiches straight from a replica, with Go's database/sql and github.com/mattn/go-sqlite3.
//
//	go run . [-at TIME] EXTENSION REPLICA_URL
//	go run . -for 10s [-readers 16] [-cache shared|private] EXTENSION REPLICA_URL
//
// The first form prints the table as it is now and as it was. The second reads with many goroutines over a pool of
// connections while the replica moves, and checks that every answer is of one transaction and none is older than one
// that was seen before.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-sqlite3"
)

const driver = "sqlite3_litestream"

// kept is how many tastings the database remembers.
const kept = 200

func main() {
	at := flag.String("at", "5 seconds ago", "the `time` to travel to")
	duration := flag.Duration("for", 0, "read with many goroutines for so long, instead of printing")
	readers := flag.Int("readers", 16, "how many goroutines")
	cache := flag.String("cache", "shared", "SQLite's page cache: shared by all connections, or private")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run . [FLAGS] EXTENSION REPLICA_URL")
		flag.PrintDefaults()
		os.Exit(2)
	}
	extension, replica := flag.Arg(0), flag.Arg(1)
	if err := run(extension, replica, *at, *cache, *duration, *readers); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(extension, replica, at, cache string, duration time.Duration, readers int) error {
	if err := load(extension); err != nil {
		return err
	}
	if duration > 0 {
		return soak(replica, cache, duration, readers)
	}
	return show(replica, cache, at)
}

// load registers a driver whose connections have the extension, and opens one: from then on the VFS is known to the
// whole process. A connection that already names the VFS cannot be the one that brings it.
func load(extension string) error {
	sql.Register(driver, &sqlite3.SQLiteDriver{Extensions: []string{extension}})
	memory, err := sql.Open(driver, ":memory:")
	if err != nil {
		return err
	}
	defer memory.Close()
	if err := memory.Ping(); err != nil {
		return fmt.Errorf("cannot load %s: %w", extension, err)
	}
	return nil
}

// open opens a pool. With a shared cache, SQLite tells databases apart by their names alone, parameters not counted:
// each replica, and each moment of one, needs a name of its own.
func open(name, replica, cache, more string) (*sql.DB, error) {
	value := strings.ReplaceAll(url.QueryEscape(replica), "+", "%20")
	return sql.Open(driver, "file:"+name+"?vfs=litestream&cache="+cache+"&replica_url="+value+more)
}

// show prints the table as it is now and as it was.
func show(replica, cache, at string) error {
	ctx := context.Background()
	db, err := open("sandwiches.db", replica, cache, "")
	if err != nil {
		return err
	}
	defer db.Close()
	if err := printTable(ctx, db, "latest"); err != nil {
		return err
	}

	// A PRAGMA belongs to one connection, and a pool has many: time travel in a pool is a parameter of its URI.
	then := strings.ReplaceAll(url.QueryEscape(at), "+", "%20")
	past, err := open("sandwiches-then.db", replica, cache, "&at="+then)
	if err != nil {
		return err
	}
	defer past.Close()
	var moment string
	if err := past.QueryRowContext(ctx, "SELECT litestream_time()").Scan(&moment); err != nil {
		return withReason(ctx, err)
	}
	if err := printTable(ctx, past, "at "+moment); err != nil {
		return err
	}

	// One connection for itself can travel as it likes.
	alone, err := open("sandwiches-alone.db", replica, "private", "")
	if err != nil {
		return err
	}
	defer alone.Close()
	conn, err := alone.Conn(ctx)
	if err != nil {
		return withReason(ctx, err)
	}
	defer conn.Close()
	set := "PRAGMA litestream_time = '" + strings.ReplaceAll(at, "'", "''") + "'"
	if err := conn.QueryRowContext(ctx, set).Scan(&moment); err != nil {
		return err
	}
	return printTable(ctx, conn, "at "+moment)
}

// withReason adds what the extension has to say: SQLite itself says no more than "unable to open database file".
func withReason(ctx context.Context, err error) error {
	memory, failed := sql.Open(driver, ":memory:")
	if failed != nil {
		return err
	}
	defer memory.Close()
	var reason string
	if memory.QueryRowContext(ctx, "SELECT litestream_error()").Scan(&reason) != nil || reason == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, reason)
}

// beginner is a pool or one connection.
type beginner interface {
	BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
}

// printTable prints a line with the TXID, and the rows, all from one transaction.
func printTable(ctx context.Context, db beginner, title string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return withReason(ctx, err)
	}
	defer tx.Rollback()
	// One statement, one view: the TXID is that of the rows.
	rows, err := tx.QueryContext(ctx, "SELECT id, sandwich, rating, tasted, litestream_txid() FROM sandwich_ratings ORDER BY id")
	if err != nil {
		return withReason(ctx, err)
	}
	defer rows.Close()
	first := true
	for rows.Next() {
		var id, rating, tasted int64
		var sandwich, txid string
		if err := rows.Scan(&id, &sandwich, &rating, &tasted, &txid); err != nil {
			return err
		}
		if first {
			fmt.Println(title, txid)
			first = false
		}
		fmt.Printf("%d|%s|%d|%d\n", id, sandwich, rating, tasted)
	}
	return rows.Err()
}

// tally is what the readers have seen.
type tally struct {
	reads, moves, checks atomic.Int64
	// The newest transaction that anybody has seen: who begins later must not see an older one.
	newest atomic.Int64
	sum    atomic.Int64
}

// soak reads with many goroutines over fewer connections.
func soak(replica, cache string, duration time.Duration, readers int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	db, err := open("sandwiches.db", replica, cache, "&poll_interval=200ms")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(max(1, readers/2))
	// Fewer idle ones than open ones, and short lives: connections come and go all the time.
	db.SetMaxIdleConns(max(1, readers/4))
	db.SetConnMaxLifetime(500 * time.Millisecond)

	var seen tally
	if err := read(ctx, db, &seen); err != nil {
		return err
	}
	began := seen.newest.Load()

	// With a shared cache, one transaction that is open keeps all connections where they are. So the readers pause
	// together, again and again, as they would in a program that has quiet moments.
	deadline := time.Now().Add(duration)
	var failure error
	for failure == nil && time.Now().Before(deadline) {
		until := time.Now().Add(100 * time.Millisecond)
		failures := make([]error, readers)
		var all sync.WaitGroup
		for reader := range readers {
			all.Add(1)
			go func() {
				defer all.Done()
				for failures[reader] == nil && time.Now().Before(until) {
					failures[reader] = read(ctx, db, &seen)
				}
			}()
		}
		all.Wait()
		failure = errors.Join(failures...)
		if failure == nil {
			failure = check(ctx, db, &seen)
		}
	}
	if failure != nil {
		return failure
	}
	fmt.Printf("soak %s: %d reads, %d moves, %d integrity checks, transactions %d to %d\n",
		cache, seen.reads.Load(), seen.moves.Load(), seen.checks.Load(), began, seen.newest.Load())
	return nil
}

// read runs one transaction of two statements, and judges what it shows.
func read(ctx context.Context, db *sql.DB, seen *tally) error {
	before := seen.newest.Load()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return withReason(ctx, err)
	}
	defer tx.Rollback()
	var sum, newest int64
	err = tx.QueryRowContext(ctx, "SELECT sum(rating), max(tasted) FROM sandwich_ratings").Scan(&sum, &newest)
	if err != nil {
		return withReason(ctx, err)
	}
	// The writer keeps the notes of the last tastings only.
	var first, last int64
	err = tx.QueryRowContext(ctx, "SELECT (SELECT min(n) FROM tastings), (SELECT max(n) FROM tastings)").Scan(&first, &last)
	if err != nil {
		return withReason(ctx, err)
	}
	if newest < before {
		return fmt.Errorf("transaction %d was seen after transaction %d", newest, before)
	}
	if last != newest || first != max(1, newest-kept+1) {
		return fmt.Errorf("two transactions in one view: ratings of %d, tastings %d to %d", newest, first, last)
	}
	if !seen.sum.CompareAndSwap(0, sum) && seen.sum.Load() != sum {
		return fmt.Errorf("transaction %d: the ratings add up to %d, not %d", newest, sum, seen.sum.Load())
	}
	seen.reads.Add(1)
	for {
		known := seen.newest.Load()
		if newest <= known {
			return nil
		}
		if seen.newest.CompareAndSwap(known, newest) {
			seen.moves.Add(1)
			return nil
		}
	}
}

// check has SQLite look at the whole database.
func check(ctx context.Context, db *sql.DB, seen *tally) error {
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&verdict); err != nil {
		return withReason(ctx, err)
	}
	if verdict != "ok" {
		return fmt.Errorf("integrity_check: %s", verdict)
	}
	seen.checks.Add(1)
	return nil
}
