<?php
// The sample account's site. /write?id=ID keeps ID in both databases and in a file, and says "ok"
// only when all three are on the disk. /read counts what is there.
require __DIR__ . '/../settings.php';

header('Content-Type: text/plain');
header('Cache-Control: no-store');

function answer(int $status, string $text): never
{
    http_response_code($status);
    header('Content-Length: ' . strlen($text));
    echo $text;
    exit;
}

/** @return array{0: PDO, 1: PDO} */
function databases(): array
{
    $options = [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION, PDO::ATTR_TIMEOUT => 20];
    return [
        new PDO(SHOP_DSN, SHOP_USER, SHOP_PASSWORD, $options),
        new PDO(APP_DSN, APP_USER, APP_PASSWORD, $options),
    ];
}

/** A reload of PHP-FPM, whoever asks for it, ends a wait for a lock: then it is asked for again. */
function locked($file): bool
{
    for ($tries = 0; $tries < 5; $tries++) {
        if (flock($file, LOCK_EX)) {
            return true;
        }
    }
    return false;
}

function append(string $line): void
{
    $file = fopen(VISITS_FILE, 'ab');
    if ($file === false || !locked($file)) {
        throw new RuntimeException('the file cannot be opened');
    }
    $whole = fstat($file)['size'];
    if (fwrite($file, $line) !== strlen($line) || !fflush($file) || !fsync($file)) {
        // On a full disk half a line may be there: the next one would begin in it.
        ftruncate($file, $whole);
        throw new RuntimeException('the file cannot be written');
    }
    fclose($file);
}

function write(string $id): never
{
    if (!preg_match('/^[0-9a-z-]{1,64}$/D', $id)) {
        answer(400, "bad id\n");
    }
    $server = gethostname();
    $at = (int) (microtime(true) * 1e6);
    [$shop, $app] = databases();
    $shop->beginTransaction();
    $app->beginTransaction();
    $shop->prepare('INSERT INTO visits (id, server, at_us) VALUES (?, ?, ?)')->execute([$id, $server, $at]);
    $app->prepare('INSERT INTO visits (id, server, at_us) VALUES (?, ?, ?)')->execute([$id, $server, $at]);
    append("$id $server $at\n");
    $shop->commit();
    $app->commit();
    answer(200, "ok $id $server $at\n");
}

try {
    $path = parse_url($_SERVER['REQUEST_URI'] ?? '/', PHP_URL_PATH);
    if ($path === '/write') {
        write((string) ($_POST['id'] ?? $_GET['id'] ?? ''));
    }
    if ($path === '/read') {
        [$shop, $app] = databases();
        $counts = [
            $shop->query('SELECT count_visits()')->fetchColumn(),
            $app->query('SELECT count_visits()')->fetchColumn(),
        ];
        answer(200, 'ok ' . implode(' ', $counts) . ' ' . gethostname() . "\n");
    }
    answer(200, 'the sample account, served by ' . gethostname() . "\n");
} catch (Throwable $error) {
    error_log('sample: ' . $error->getMessage());
    answer(500, 'failed: ' . get_class($error) . ': ' . $error->getMessage() . "\n");
}
