// A client of JuiceFS's block map in Go, as JuiceFS is one: database/sql with github.com/mattn/go-sqlite3, a shared cache,
// many goroutines that all write. It fails if one acknowledged transaction is lost, done twice or half done.
//
//	go run . -for 10s -schema FILE -file meta.db
//	go run . -for 10s -schema FILE -extension LIB -replica URL -buffer FILE
//	go run . -expect N -file restored.db
//
// The first two write, to a plain file or through the VFS, and check. The last only checks a file that must hold N
// transactions.
package main

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-sqlite3"
)

const (
	plainDriver = "sqlite3"
	vfsDriver   = "sqlite3_litestream"
	// The row that counts the transactions of this program.
	counter = "goWorkload"
	// As often as JuiceFS tries a transaction, and then some: there may be more goroutines here.
	tries = 500
	block = 4096
	root  = 1
)

type options struct {
	duration                           time.Duration
	writers, readers                   int
	extension, replica, buffer, file   string
	schema, cache, journal, sync, more string
	expect                             int64
}

func main() {
	var o options
	flag.DurationVar(&o.duration, "for", 0, "write for so long")
	flag.IntVar(&o.writers, "writers", 8, "how many goroutines write")
	flag.IntVar(&o.readers, "readers", 2, "how many goroutines read")
	flag.StringVar(&o.extension, "extension", "", "the SQLite extension; without one, a plain file is written")
	flag.StringVar(&o.replica, "replica", "", "URL of the replica")
	flag.StringVar(&o.buffer, "buffer", "", "the write buffer")
	flag.StringVar(&o.file, "file", "meta.db", "the plain file, or the database's name in the VFS")
	flag.StringVar(&o.schema, "schema", "", "SQL that makes JuiceFS's tables where there are none")
	flag.StringVar(&o.cache, "cache", "shared", "SQLite's page cache: shared by all connections, or private")
	flag.StringVar(&o.journal, "journal", "WAL", "the journal mode to ask for")
	flag.StringVar(&o.sync, "sync-interval", "200ms", "how often the VFS uploads")
	flag.StringVar(&o.more, "more", "", "more parameters of the URI, from & on")
	flag.Int64Var(&o.expect, "expect", -1, "how many transactions there must be, where nothing is written")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	ctx := context.Background()
	db, err := open(o)
	if err != nil {
		return err
	}
	defer db.Close()
	if o.duration == 0 {
		held, err := check(ctx, db, o, o.expect)
		if err == nil {
			fmt.Printf("blockmap holds %d transactions, integrity ok\n", held)
		}
		return err
	}
	if err := prepare(ctx, db, o); err != nil {
		return withReason(ctx, db, fmt.Errorf("cannot prepare: %w", err))
	}
	return withReason(ctx, db, soak(ctx, db, o))
}

// open opens a pool, over the VFS if there is an extension. A connection that already names the VFS cannot be the one
// that brings it, so another loads it first.
func open(o options) (*sql.DB, error) {
	uri := "file:" + o.file + "?cache=" + o.cache + "&_timeout=5000&_journal=" + o.journal + o.more
	driver := plainDriver
	if o.extension != "" {
		driver = vfsDriver
		sql.Register(vfsDriver, &sqlite3.SQLiteDriver{Extensions: []string{o.extension}})
		memory, err := sql.Open(vfsDriver, ":memory:")
		if err != nil {
			return nil, err
		}
		defer memory.Close()
		if err := memory.Ping(); err != nil {
			return nil, fmt.Errorf("cannot load %s: %w", o.extension, err)
		}
		uri += "&vfs=litestream&write_enabled=true&sync_interval=" + o.sync +
			"&replica_url=" + escape(o.replica) + "&buffer_path=" + escape(o.buffer)
	}
	db, err := sql.Open(driver, uri)
	if err != nil {
		return nil, err
	}
	connections := o.writers + o.readers
	db.SetMaxOpenConns(connections)
	// Fewer idle ones than open ones, and short lives: connections come and go all the time.
	db.SetMaxIdleConns(max(1, connections/2))
	db.SetConnMaxLifetime(700 * time.Millisecond)
	return db, nil
}

func escape(value string) string {
	return strings.ReplaceAll(url.QueryEscape(value), "+", "%20")
}

// prepare makes the tables and an empty volume's rows where there are none, and every writer's directory.
func prepare(ctx context.Context, db *sql.DB, o options) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	var tables int
	err = conn.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE name = 'jfs_node'").Scan(&tables)
	if err != nil {
		return err
	}
	return transact(ctx, conn, true, func() error {
		if tables == 0 {
			schema, err := os.ReadFile(o.schema)
			if err != nil {
				return fmt.Errorf("there are no tables, and no -schema: %w", err)
			}
			// SQLite makes this one itself.
			statements := strings.Replace(string(schema), "CREATE TABLE sqlite_sequence(name,seq);", "", 1)
			if _, err := conn.ExecContext(ctx, statements+empty); err != nil {
				return err
			}
		}
		_, err := conn.ExecContext(ctx, "INSERT OR IGNORE INTO jfs_counter(name, value) VALUES (?, 0)", counter)
		return err
	})
}

// empty is what a volume holds at first, as far as it matters here.
const empty = `;
INSERT INTO jfs_setting VALUES ('format', '{"Name": "go", "UUID": "0", "Storage": "file", "BlockSize": 4096}');
INSERT INTO jfs_counter VALUES ('nextInode', 2), ('nextChunk', 1), ('nextSession', 0), ('usedSpace', 0),
  ('totalInodes', 0), ('nextCleanupSlices', 0);
INSERT INTO jfs_node(inode, type, flags, mode, uid, gid, atime, mtime, ctime, nlink, length, rdev, parent)
  VALUES (1, 2, 0, 511, 0, 0, 0, 0, 0, 2, 4096, 0, 1), (9223372032828243968, 2, 0, 365, 0, 0, 0, 0, 0, 2, 4096, 0, 1);`

// tally is what was done.
type tally struct {
	commits, reads, busy, locked atomic.Int64
}

// retried notes why a transaction was not done at once: another connection was in the way (busy), or one of the same
// shared cache (locked).
func (seen *tally) retried(err error) {
	var reason sqlite3.Error
	if errors.As(err, &reason) && reason.Code == sqlite3.ErrLocked {
		seen.locked.Add(1)
	} else {
		seen.busy.Add(1)
	}
}

// soak writes with many goroutines, each in a directory of its own, then checks.
func soak(ctx context.Context, db *sql.DB, o options) error {
	began, err := read(ctx, db, "SELECT value FROM jfs_counter WHERE name = 'goWorkload'")
	if err != nil {
		return err
	}
	var (
		seen     tally
		all      sync.WaitGroup
		deadline = time.Now().Add(o.duration)
		writers  = make([]*writer, o.writers)
		failures = make([]error, o.writers+o.readers)
		failed   atomic.Bool
	)
	goOn := func() bool { return !failed.Load() && time.Now().Before(deadline) }
	for number := range writers {
		writers[number] = &writer{
			ctx: ctx, db: db, seen: &seen, files: map[string]*file{},
			random:    rand.New(rand.NewSource(int64(number) + 1)),
			directory: fmt.Sprintf("go-%d-%d", began, number),
			deferred:  number%3 == 2,
		}
	}
	for number := range failures {
		all.Add(1)
		go func() {
			defer all.Done()
			for failures[number] == nil && goOn() {
				if number < o.writers {
					failures[number] = writers[number].step()
				} else {
					failures[number] = watch(ctx, db, &seen)
				}
			}
			if failures[number] != nil {
				failed.Store(true)
			}
		}()
	}
	all.Wait()
	for number, err := range failures {
		if err != nil {
			failures[number] = fmt.Errorf("goroutine %d of %d writers and %d readers: %w", number, o.writers, o.readers, err)
		}
	}
	if err := errors.Join(failures...); err != nil {
		return err
	}
	for _, writer := range writers {
		if err := writer.verify(); err != nil {
			return fmt.Errorf("%s: %w", writer.directory, err)
		}
	}
	held, err := check(ctx, db, o, began+seen.commits.Load())
	if err != nil {
		return err
	}
	txid := ""
	if o.extension != "" {
		if txid, err = ask(ctx, db, "PRAGMA litestream_sync"); err != nil {
			return fmt.Errorf("litestream_sync: %w", err)
		}
		txid = ", TXID " + txid
	}
	mode, err := ask(ctx, db, "PRAGMA journal_mode")
	if err != nil {
		return err
	}
	fmt.Printf("blockmap %s cache: %d transactions (%d to %d), %d retries busy, %d locked, %d reads, journal_mode %s, integrity ok%s\n",
		o.cache, seen.commits.Load(), began, held, seen.busy.Load(), seen.locked.Load(), seen.reads.Load(), mode, txid)
	return nil
}

type file struct {
	inode, length int64
	slices        int
}

// writer owns one directory: it knows every row that must be there.
type writer struct {
	ctx       context.Context
	db        *sql.DB
	seen      *tally
	random    *rand.Rand
	directory string
	deferred  bool
	inode     int64
	files     map[string]*file
	made      int
}

// step runs one transaction until it is committed.
func (w *writer) step() error {
	conn, err := w.db.Conn(w.ctx)
	if isBusy(err) {
		w.seen.retried(err)
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	kind, name, change := w.choose()
	var done func()
	for try := 0; ; try++ {
		err := transact(w.ctx, conn, !w.deferred, func() error {
			t := &transaction{ctx: w.ctx, conn: conn, now: time.Now().UnixMicro()}
			// Read first, and written as a number: two that both begin from one state would lose one of them.
			count := t.counter(counter)
			done = w.run(t, kind, name, change)
			t.exec("UPDATE jfs_counter SET value = ? WHERE name = ?", count+1, counter)
			return t.err
		})
		if err == nil {
			done()
			w.seen.commits.Add(1)
			return nil
		}
		if !isBusy(err) || try == tries {
			return fmt.Errorf("%s %s, try %d: %w", kind, name, try+1, err)
		}
		w.seen.retried(err)
		// Whoever comes between makes the next try a different one.
		time.Sleep(time.Duration(1+try%16) * time.Millisecond)
	}
}

func (w *writer) choose() (kind, name string, bytes int64) {
	bytes = int64(1 + w.random.Intn(64<<10))
	if w.inode == 0 {
		return "mkdir", w.directory, bytes
	}
	for known := range w.files {
		name = known
		break
	}
	switch n := w.random.Intn(10); {
	case name == "" || n < 4:
		w.made++
		return "create", fmt.Sprintf("file.%d", w.made), bytes
	case n < 7:
		return "write", name, bytes
	case n < 8:
		return "rename", name, bytes
	default:
		return "unlink", name, bytes
	}
}

// run does the rows of one operation, and returns what to note once it is committed.
func (w *writer) run(t *transaction, kind, name string, bytes int64) func() {
	if kind == "mkdir" {
		inode := t.node(2, root, name)
		t.exec("UPDATE jfs_node SET nlink = nlink + 1 WHERE inode = ?", root)
		t.exec("INSERT INTO jfs_dir_stats(inode, data_length, used_space, used_inodes) VALUES (?, 0, 0, 0)", inode)
		return func() { w.inode = inode }
	}
	f := w.files[name]
	switch kind {
	case "create":
		inode := t.node(1, w.inode, name)
		return func() { w.files[name] = &file{inode: inode} }
	case "write":
		length := t.write(w.inode, f, bytes)
		return func() { f.length, f.slices = length, f.slices+1 }
	case "rename":
		t.exec("UPDATE jfs_edge SET name = ? WHERE parent = ? AND name = ?", []byte(name+".r"), w.inode, []byte(name))
		t.exec("UPDATE jfs_node SET ctime = ? WHERE inode = ?", t.now, f.inode)
		return func() { delete(w.files, name); w.files[name+".r"] = f }
	default:
		t.unlink(w.inode, name, f)
		return func() { delete(w.files, name) }
	}
}

// verify looks for exactly the rows that were acknowledged.
func (w *writer) verify() error {
	if w.inode == 0 {
		return nil
	}
	rows, err := w.db.QueryContext(w.ctx, `SELECT edge.name, node.inode, node.length, coalesce(length(CAST(chunk.slices AS BLOB)), 0) / 24
		FROM jfs_edge edge JOIN jfs_node node USING (inode) LEFT JOIN jfs_chunk chunk USING (inode) WHERE edge.parent = ?`, w.inode)
	if err != nil {
		return err
	}
	defer rows.Close()
	found := 0
	for rows.Next() {
		var name []byte
		var f file
		if err := rows.Scan(&name, &f.inode, &f.length, &f.slices); err != nil {
			return err
		}
		if known := w.files[string(name)]; known == nil || *known != f {
			return fmt.Errorf("%s is %+v, not %+v", name, f, known)
		}
		found++
	}
	if found != len(w.files) {
		return fmt.Errorf("%d files of %d are there", found, len(w.files))
	}
	return rows.Err()
}

// transaction runs statements until one fails, and remembers why.
type transaction struct {
	ctx  context.Context
	conn *sql.Conn
	now  int64
	err  error
}

func (t *transaction) exec(statement string, arguments ...any) {
	if t.err != nil {
		return
	}
	var result sql.Result
	if result, t.err = t.conn.ExecContext(t.ctx, statement, arguments...); t.err != nil {
		return
	}
	if n, _ := result.RowsAffected(); n == 0 {
		t.err = fmt.Errorf("no row was there for: %s %v", statement, arguments)
	}
}

func (t *transaction) counter(name string) (value int64) {
	if t.err == nil {
		t.err = t.conn.QueryRowContext(t.ctx, "SELECT value FROM jfs_counter WHERE name = ?", name).Scan(&value)
	}
	return value
}

// next takes a number from a counter.
func (t *transaction) next(name string) int64 {
	value := t.counter(name)
	t.exec("UPDATE jfs_counter SET value = ? WHERE name = ?", value+1, name)
	return value
}

// used notes what a directory and the volume hold more, or less.
func (t *transaction) used(directory, length, space, inodes int64) {
	t.exec(`INSERT INTO jfs_dir_stats(inode, data_length, used_space, used_inodes) VALUES (?1, ?2, ?3, ?4) ON CONFLICT(inode)
		DO UPDATE SET data_length = data_length + ?2, used_space = used_space + ?3, used_inodes = used_inodes + ?4`,
		directory, length, space, inodes)
	t.exec("UPDATE jfs_counter SET value = value + ? WHERE name = 'usedSpace'", space)
	t.exec("UPDATE jfs_counter SET value = value + ? WHERE name = 'totalInodes'", inodes)
}

// node makes a file or a directory.
func (t *transaction) node(kind, parent int64, name string) int64 {
	inode := t.next("nextInode")
	mode, nlink, length := 0o644, 1, 0
	if kind == 2 {
		mode, nlink, length = 0o755, 2, block
	}
	t.exec(`INSERT INTO jfs_node(inode, type, flags, mode, uid, gid, atime, mtime, ctime, nlink, length, rdev, parent,
		access_acl_id, default_acl_id, tier_id) VALUES (?1, ?2, 0, ?3, 0, 0, ?4, ?4, ?4, ?5, ?6, 0, ?7, 0, 0, 0)`,
		inode, kind, mode, t.now, nlink, length, parent)
	t.exec("INSERT INTO jfs_edge(parent, name, inode, type) VALUES (?, ?, ?, ?)", parent, []byte(name), inode, kind)
	t.exec("UPDATE jfs_node SET mtime = ?1, ctime = ?1 WHERE inode = ?2", t.now, parent)
	t.used(parent, 0, block, 1)
	return inode
}

// write puts one slice behind the others; all stay in a file's first chunk. Returns the new length.
func (t *transaction) write(directory int64, f *file, bytes int64) int64 {
	bytes = min(bytes, 64<<20-f.length)
	id := t.next("nextChunk")
	slice := make([]byte, 24)
	binary.BigEndian.PutUint32(slice, uint32(f.length))
	binary.BigEndian.PutUint64(slice[4:], uint64(id))
	binary.BigEndian.PutUint32(slice[12:], uint32(bytes))
	binary.BigEndian.PutUint32(slice[20:], uint32(bytes))
	// As JuiceFS has it: || makes TEXT of the BLOB, with the same bytes.
	t.exec("INSERT INTO jfs_chunk(inode, indx, slices) VALUES (?, 0, ?) ON CONFLICT(inode, indx) DO UPDATE SET slices = slices || excluded.slices",
		f.inode, slice)
	t.exec("INSERT INTO jfs_chunk_ref(chunkid, size, refs) VALUES (?, ?, 1)", id, bytes)
	length := f.length + bytes
	t.exec("UPDATE jfs_node SET length = ?1, mtime = ?2, ctime = ?2 WHERE inode = ?3", length, t.now, f.inode)
	t.used(directory, bytes, blocks(length)-blocks(f.length), 0)
	return length
}

// unlink removes a file, its chunk and its slices at once, as a JuiceFS without a trash does in a few transactions.
func (t *transaction) unlink(directory int64, name string, f *file) {
	if f.slices > 0 {
		var slices []byte
		if t.err == nil {
			t.err = t.conn.QueryRowContext(t.ctx, "SELECT slices FROM jfs_chunk WHERE inode = ? AND indx = 0", f.inode).Scan(&slices)
		}
		for ; len(slices) >= 24; slices = slices[24:] {
			t.exec("DELETE FROM jfs_chunk_ref WHERE chunkid = ?", int64(binary.BigEndian.Uint64(slices[4:])))
		}
		t.exec("DELETE FROM jfs_chunk WHERE inode = ?", f.inode)
	}
	t.exec("DELETE FROM jfs_edge WHERE parent = ? AND name = ?", directory, []byte(name))
	t.exec("DELETE FROM jfs_node WHERE inode = ?", f.inode)
	t.exec("UPDATE jfs_node SET mtime = ?1, ctime = ?1 WHERE inode = ?2", t.now, directory)
	t.used(directory, -f.length, -blocks(f.length), -1)
}

// blocks is what a file takes: whole blocks, at least one.
func blocks(length int64) int64 {
	return (max(length, 1) + block - 1) / block * block
}

// transact runs one transaction. When it returns an error, nothing of it is there.
func transact(ctx context.Context, conn *sql.Conn, immediate bool, body func() error) error {
	begin := "BEGIN"
	if immediate {
		begin = "BEGIN IMMEDIATE"
	}
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return fmt.Errorf("%s: %w", begin, err)
	}
	err := body()
	if err == nil {
		if _, err = conn.ExecContext(ctx, "COMMIT"); err == nil {
			return nil
		}
		err = fmt.Errorf("COMMIT: %w", err)
	}
	// SQLite may have rolled it back by itself.
	_, _ = conn.ExecContext(ctx, "ROLLBACK")
	return err
}

// watch reads two tables that every transaction changes together, in one view.
func watch(ctx context.Context, db *sql.DB, seen *tally) error {
	err := consistent(ctx, db)
	switch {
	case err == nil:
		seen.reads.Add(1)
	case isBusy(err):
	default:
		return fmt.Errorf("reading: %w", err)
	}
	// In a shared cache, a table that is always being read is never written.
	time.Sleep(5 * time.Millisecond)
	return nil
}

func consistent(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var counted, named, space, taken int64
	if err := tx.QueryRowContext(ctx, "SELECT value FROM jfs_counter WHERE name = 'totalInodes'").Scan(&counted); err != nil {
		return err
	}
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM jfs_node WHERE inode > 1 AND inode < 9223372032828243968").Scan(&named); err != nil {
		return err
	}
	if err := tx.QueryRowContext(ctx, "SELECT value FROM jfs_counter WHERE name = 'usedSpace'").Scan(&space); err != nil {
		return err
	}
	if err := tx.QueryRowContext(ctx, `SELECT coalesce(sum(CASE type WHEN 1 THEN (max(length, 1) + 4095) / 4096 * 4096 ELSE 4096 END), 0)
		FROM jfs_node WHERE inode > 1 AND inode < 9223372032828243968`).Scan(&taken); err != nil {
		return err
	}
	if counted != named || space != taken {
		return fmt.Errorf("two transactions in one view: %d nodes and %d bytes counted, %d and %d are there", counted, space, named, taken)
	}
	return nil
}

// check judges the whole database when nobody writes; expect below 0 allows any number of transactions.
func check(ctx context.Context, db *sql.DB, o options, expect int64) (int64, error) {
	if err := consistent(ctx, db); err != nil {
		return 0, err
	}
	held, err := read(ctx, db, "SELECT value FROM jfs_counter WHERE name = 'goWorkload'")
	if err != nil {
		return 0, err
	}
	if expect >= 0 && held != expect {
		return 0, fmt.Errorf("the database holds %d transactions, %d were acknowledged", held, expect)
	}
	lost, err := read(ctx, db, `SELECT (SELECT count(*) FROM jfs_edge WHERE inode NOT IN (SELECT inode FROM jfs_node))
		+ (SELECT count(*) FROM jfs_chunk WHERE inode NOT IN (SELECT inode FROM jfs_node))
		+ (SELECT abs(coalesce(sum(length(CAST(slices AS BLOB))) / 24, 0) - (SELECT count(*) FROM jfs_chunk_ref)) FROM jfs_chunk)`)
	if err != nil {
		return 0, err
	}
	if lost != 0 {
		return 0, fmt.Errorf("%d rows refer to nothing", lost)
	}
	verdict, err := ask(ctx, db, "PRAGMA integrity_check")
	if err == nil && verdict != "ok" {
		err = fmt.Errorf("integrity_check: %s", verdict)
	}
	return held, err
}

func read(ctx context.Context, db *sql.DB, query string) (value int64, err error) {
	err = db.QueryRowContext(ctx, query).Scan(&value)
	return value, err
}

func ask(ctx context.Context, db *sql.DB, query string) (value string, err error) {
	err = db.QueryRowContext(ctx, query).Scan(&value)
	return value, err
}

// isBusy says whether another connection was in the way. With a shared cache, SQLite says locked and does not wait.
func isBusy(err error) bool {
	var reason sqlite3.Error
	return errors.As(err, &reason) && (reason.Code == sqlite3.ErrBusy || reason.Code == sqlite3.ErrLocked)
}

// withReason adds SQLite's extended code, and what the VFS knows of the last failure.
func withReason(ctx context.Context, db *sql.DB, err error) error {
	var reason sqlite3.Error
	if !errors.As(err, &reason) {
		return err
	}
	err = fmt.Errorf("%w (code %d)", err, reason.ExtendedCode)
	if said, failed := ask(ctx, db, "SELECT coalesce(litestream_error(), '')"); failed == nil && said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}
