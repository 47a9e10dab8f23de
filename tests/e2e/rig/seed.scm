;; SPDX-License-Identifier: GPL-3.0-or-later
;;
;; Sample store items, made without a network; prints "label store-path" lines.
;;   guix repl -- seed.scm [big]
;; The builder of the derivations is a static busybox that is a store item itself.

(use-modules (guix derivations) (guix store) (ice-9 match))

(define big? (member "big" (command-line)))

(define (sh script)
  (unless (zero? (system* "/bin/sh" "-euc" script))
    (error "shell failed" script)))

(define (say label path)
  (format #t "~a ~a~%" label path))

(sh "
rm -rf /tmp/seed; mkdir /tmp/seed; cd /tmp/seed
echo 'a single file' > single
mkdir -p tree/bin tree/lib tree/nothing-here 'tree/share/a b/c'
printf '#!/bin/sh\\necho run\\n' > tree/bin/run; chmod 755 tree/bin/run
printf 'data without a newline' > tree/lib/data
: > 'tree/share/a b/c/empty'
ln -s ../bin/run tree/lib/run; ln -s /does/not/exist tree/broken; ln -s . tree/lib/here
printf 1 > 'tree/share/größe'; printf 2 > 'tree/share/日本語'; printf 3 > 'tree/share/🜨'
for n in 7 8 9 8191 8192 8193; do head -c $n /dev/zero | tr '\\0' x > tree/share/size-$n; done
cp tree/share/size-8192 tree/share/same-as-size-8192
mkdir many; i=0; while [ $i -lt 3000 ]; do echo number $i > many/file-$i; i=$((i+1)); done
mkdir -p bb/bin; cp /usr/bin/busybox bb/bin/
mkdir medium; head -c 200000 /dev/urandom > medium/noise; seq 20000 > medium/numbers
mkdir extra
for n in 1 2 3 4 5 6 7 8; do
  mkdir extra/$n; head -c 3000 /dev/urandom > extra/$n/noise; seq 9$n > extra/$n/numbers
done")

(define store (open-connection))

(define* (add label name directory)
  (let ((item (add-to-store store name #t "sha256" (string-append "/tmp/seed/" directory))))
    (say label item)
    item))

(add "single" "e2e-single" "single")
(add "tree" "e2e-tree" "tree")
(add "many" "e2e-many-files" "many")
(add "medium" "e2e-medium" "medium")
;; Items that one test each may use up.
(for-each (lambda (n)
            (add (string-append "extra-" n) (string-append "e2e-extra-" n)
                 (string-append "extra/" n)))
          '("1" "2" "3" "4" "5" "6" "7" "8"))

(define bb-item (add "busybox" "e2e-busybox" "bb"))
(define bb (string-append bb-item "/bin/busybox"))

(define* (build name script #:key (inputs '()) (outputs '("out")))
  (let ((drv (derivation store name bb (list "sh" "-euc" script)
                         #:sources (cons bb-item inputs)
                         #:env-vars `(("bb" . ,bb) ("PATH" . "/nowhere"))
                         #:outputs outputs)))
    (build-derivations store (list drv))
    (say (string-append name ".drv") (derivation-file-name drv))
    (map (match-lambda
           ((output . path)
            (say (if (string=? output "out") name (string-append name ":" output)) path)
            path))
         (derivation->output-paths drv))))

(define leaf
  (car (build "e2e-leaf" "$bb mkdir $out; echo leaf > $out/leaf")))
(define middle
  (car (build "e2e-middle"
              (string-append "$bb mkdir $out; $bb ln -s " leaf "/leaf $out/leaf")
              #:inputs (list leaf))))
;; Two outputs, a reference to itself and, through another item, to a third.
(build "e2e-app"
       (string-append
        "$bb mkdir -p $out/bin $doc; echo read me > $doc/README; echo $out > $out/self\n"
        "printf '#!%s sh\\nexec %s cat %s\\n' $bb $bb " middle "/leaf > $out/bin/app\n"
        "$bb chmod 755 $out/bin/app")
       #:inputs (list middle) #:outputs '("out" "doc"))

(when big?
  ;; 230 MB, half of it noise.
  (build "e2e-big"
         "$bb mkdir $out
          $bb head -c 115343360 /dev/urandom > $out/noise
          $bb yes 'forty-two bytes of text that compress well' | $bb head -c 115343360 > $out/text"))

(close-connection store)
